r"""The map of the lecture: what each phenomenon is, its formulas, and what this tool looks at. Texts only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """`kinds`: the findings that report it; `idea` and `looks` are Markdown, each of `formulas` is LaTeX."""

    title: str
    idea: str
    formulas: tuple[str, ...]
    looks: str
    kinds: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "convexity": Topic(
        "Convexity",
        "A function is convex if every chord lies above it: it is a bowl, and every local minimum is global. Squared "
        "error and cross-entropy are convex *in the outputs*, so linear models are convex in their weights. A network "
        "with hidden units never is: swapping two hidden units changes the weights but not the function, and a convex "
        "cost would have to be at least as good at the average of all such swaps - where all units are the same.",
        (
            r"f\big((1-\lambda)\mathbf x_0+\lambda\mathbf x_1\big)\le(1-\lambda)f(\mathbf x_0)+\lambda f(\mathbf x_1)",
            r"\text{for smooth } f:\ \mathbf H \succeq 0 \text{ everywhere}",
        ),
        "The smallest eigenvalue of the Hessian, with its residual: one negative value proves that the cost is not "
        "convex there.",
        ("local-minimum", "saddle-point"),
    ),
    "local minima": Topic(
        "Local minima",
        "Where the gradient is zero and every direction curves upwards, gradient descent stops. For a convex cost "
        "that is the best there is; for a network it depends on where one started, and nothing measured at the point "
        "can tell whether a better one exists.",
        (
            r"\nabla\mathcal J(\theta_*)=\mathbf 0,\quad \mathbf H(\theta_*)\succ 0 \;\Rightarrow\; \theta_*"
            r"\text{ is a local minimum}",
        ),
        "A gradient within its own noise and no clearly negative eigenvalue. It is reported as information, not as a "
        "fault.",
        ("local-minimum",),
    ),
    "saddle points": Topic(
        "Saddle points",
        "The gradient is zero, yet some directions curve down. Exactly on the saddle one is stuck; slightly to the "
        "side one gets away, the slower the closer. Two hidden units with identical incoming and outgoing weights "
        "stay identical for ever: that is why weights start random and small, never all zero.",
        (
            r"\nabla\mathcal J=\mathbf 0,\quad \lambda_{\min}<0<\lambda_{\max}",
            r"y_k=(1+\alpha|\lambda_{\min}|)^k\,y_0",
        ),
        "Gradient norm against its noise, the smallest eigenvalue with its residual on independent batches, and the "
        "number of distinct hidden units of every layer.",
        ("saddle-point", "symmetry"),
    ),
    "plateaux": Topic(
        "Plateaux",
        "A flat region: 0-1 loss, hard thresholds, a logistic output under least squares. A *saturated unit* sits in "
        "the flat part of its activation, so its weights hardly get a gradient; a ReLU unit whose input is negative on "
        "all data is *dead*, and its weights get exactly none.",
        (r"\bar z_i=\bar h_i\,\phi'(z_i),\qquad \bar w_{ij}=\bar z_i\,x_j",),
        "The share of dead and of saturated units of every activation, and gradients that are exactly zero.",
        ("plateau", "dead-units", "saturated-units", "zero-gradient"),
    ),
    "ravines": Topic(
        "Ravines: ill-conditioned curvature",
        "Steep across, nearly flat along. Gradient descent bounces between the walls and creeps along the floor, "
        "because the one learning rate has to fit the steepest direction. Each eigen-direction is multiplied by its "
        "own factor every step.",
        (
            r"\theta_k=\mathbf Q(\mathbf I-\alpha\mathbf\Lambda)^k\mathbf Q^\top\theta_0",
            r"\alpha\lambda_i<\frac{2\lambda_i}{\lambda_{\max}},\qquad"
            r" \kappa=\frac{\lambda_{\max}}{\lambda_{\min}}",
        ),
        "The largest eigenvalues, the curvature along the path actually taken, and the share of the gradient that "
        "lies in flat directions.",
        ("ravine",),
    ),
    "cliffs": Topic(
        "Cliffs",
        "The lecture names them and leaves them for later. On a cliff the gradient is orders of magnitude larger than "
        "a step before, and a single step throws the weights far away. Clipping the gradient's norm keeps the "
        "direction and bounds the step.",
        (r"\mathbf g \leftarrow \mathbf g\,\min\!\left(1,\ \frac{c}{\lVert\mathbf g\rVert}\right)",),
        "Jumps of the gradient norm within a step or two at a learning rate that fitted the curvature before.",
        ("cliff",),
    ),
    "learning rate": Topic(
        "Learning rate",
        "Too small: slow progress. Too large: the iterate jumps across the valley and oscillates. Much too large: "
        "every step lands higher than the last.",
        (
            r"0<\alpha\lambda\le1:\text{ decays}",
            r"1<\alpha\lambda\le2:\text{ oscillates}",
            r"\alpha\lambda>2:\text{ unstable}",
        ),
        "The stability ratio $s$ of the optimizer in use, which is $\\alpha\\lambda_{\\max}/2$ for gradient descent; "
        "updates that are anti-correlated along the steepest direction; rates far below what curvature allows.",
        ("lr-unstable", "lr-oscillation", "lr-too-small", "edge-of-stability"),
    ),
    "normalization": Topic(
        "Normalization",
        "Inputs of different size, or far from zero, make a ravine before training has begun: the weight of a large "
        "feature gets a large gradient although it needs a small step. Centring and scaling each feature removes it; "
        "tanh instead of logistic units, and batch normalization, do the same for hidden activations.",
        (r"\tilde x_j=\frac{x_j-\mu_j}{\sigma_j},\qquad \bar w_j=\bar y\,x_j",),
        "Mean and deviation of every input feature, and the condition number of their correlations.",
        ("ravine",),
    ),
    "momentum": Topic(
        "Momentum",
        "A puck with little friction: across the ravine the gradients cancel, along it they add up. On a constant "
        "slope the speed approaches a terminal velocity, so a larger $\\mu$ wants a smaller $\\alpha$. At $\\mu=1$ "
        "nothing would ever settle.",
        (
            r"\mathbf p\leftarrow\mu\mathbf p-\alpha\frac{\partial\mathcal J}{\partial\theta},\quad"
            r" \theta\leftarrow\theta+\mathbf p",
            r"\mathbf p_\infty=-\frac{\alpha}{1-\mu}\frac{\partial\mathcal J}{\partial\theta}",
        ),
        "Momentum enters the stability ratio (its limit is $2(1+\\mu)/\\alpha$), and ringing whose memory is not "
        "small against the run is reported.",
        ("lr-oscillation", "lr-unstable"),
    ),
    "RMSprop and Adam": Topic(
        "RMSprop and Adam",
        "RMSprop divides every coordinate by the running size of its own gradient, so steep and flat coordinates move "
        "alike. That corrects a ravine only if it lies along the axes; turn it, and little is left. Adam is RMSprop "
        "with momentum. (The lecture's $\\gamma$ is `1 - alpha` of `torch.optim.RMSprop`.)",
        (
            r"s_j\leftarrow(1-\gamma)s_j+\gamma\left[\frac{\partial\mathcal J}{\partial\theta_j}\right]^2",
            r"\theta_j\leftarrow\theta_j-\frac{\alpha}{\sqrt{s_j}+\epsilon}\frac{\partial\mathcal"
            r" J}{\partial\theta_j}",
        ),
        "For adaptive optimizers the curvature is measured after their own rescaling, so that $s=1$ is their limit "
        "too. They hover there by themselves, which is no fault.",
        ("edge-of-stability", "ravine"),
    ),
}
