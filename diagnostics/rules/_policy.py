"""A policy's loss whose terms work against each other, and values and actions of other states."""

from collections.abc import Iterator

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules._charts import GRADIENTS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import modules_of, names_of, number
from diagnostics.run import Run


def advantage_trained(run: Run) -> Iterator[Finding]:
    """Source: Mnih et al. 2016, section 4: the policy's term has a gradient to the policy alone."""
    names = tuple(str(name) for name in run.meta["advantages"])
    if not names:
        return
    modules = modules_of(names)
    yield found(
        "advantage-trained",
        run,
        (
            f"The policy's term has a gradient to the values of {names_of(modules)}: it weighs log-probabilities with "
            "returns less values, and is lowered by other values as well as by a better policy. They are drawn "
            "away from the returns, and what then lies between the two tells good actions from bad ones no more."
        ),
        ("advantage = returns - values.detach(), in the policy's term; the values' own error keeps its gradient",),
        evidence={"tensors": float(len(names))},
        layers=names,
        formula=(
            r"\frac{\partial}{\partial V} \bigl[-(R - V) \log \pi + c\,(R - V)^2\bigr] = 0 \;\Rightarrow\; "
            r"V = R - \frac{\log \pi}{2c}"
        ),
        severity="warning",
        chart=GRADIENTS,
    )


def entropy_lowered(run: Run) -> Iterator[Finding]:
    """Source: Williams and Peng 1991, "Function optimization using connectionist reinforcement learning algorithms";
    Mnih et al. 2016, section 4."""
    names = tuple(str(name) for name in run.meta["entropy_lowered"])
    if not names or optimizer.maximizes(run):
        return
    yield found(
        "entropy-lowered",
        run,
        (
            f"The entropy of the policy ({names_of(modules_of(names))}) is added to the loss where it should be taken "
            "off: each update makes the policy surer of what it does already, and of what it no longer tries it learns "
            "nothing."
        ),
        ("loss = policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy",),
        evidence={"tensors": float(len(names))},
        layers=names,
        formula=r"\mathcal{L} = -A \log \pi(a) - \beta H(\pi), \quad H(\pi) = -\sum_a \pi(a) \log \pi(a)",
        severity="warning",
        chart=GRADIENTS,
    )


def same_states(run: Run) -> Iterator[Finding]:
    """Source: Watkins and Dayan 1992, "Q-learning"."""
    if not run.meta["same_states"]:
        return
    yield found(
        "same-states",
        run,
        (
            "The next states of a batch are the states themselves: two tensors hold the same numbers, and the value of "
            "an action is drawn to its reward and the best value of where it was taken, not of where it leads. An "
            "array that an environment writes its state to is the same array before and after a step."
        ),
        (
            "store copies of both: state.copy() of a NumPy array (np.array(state), where np.asarray(state) copies "
            "nothing), or state.clone() of a tensor",
            "print a few transitions of the memory: state and next state should differ",
        ),
        formula=r"Q(s, a) \leftarrow r + \gamma \max_{a'} Q(s', a'), \quad s' \ne s",
        severity="warning",
    )


def acted_elsewhere(run: Run) -> Iterator[Finding]:
    """Source: Schulman et al. 2017, "Proximal policy optimization algorithms"."""
    told = run.meta["acted_elsewhere"]
    if not told:
        return
    examples, different = (int(each) for each in told)
    yield found(
        "acted-elsewhere",
        run,
        (
            f"The actions of a batch were not chosen in the states that the policy is given with them: of {examples} "
            f"states only {different} are different ones, and where state and action are the same, the stored "
            "probabilities of the action are not. An array that an environment writes its state to is the same array "
            f"after each step: {number(examples / different)} steps of a rollout hold what the last one left there."
        ),
        (
            "store copies: torch.tensor(obs), obs.copy() or x.clone(); torch.as_tensor and torch.from_numpy copy "
            "nothing",
            "print the ratio of probabilities before the first update of a rollout: it is 1 where the states are those "
            "acted in",
        ),
        evidence={"examples": float(examples), "different states": float(different)},
        formula=r"r(\theta) = \frac{\pi_\theta(a_t \mid s_t)}{\pi_{\text{old}}(a_t \mid s_t)} = 1 "
        r"\quad\text{where}\quad \theta = \theta_{\text{old}}",
        severity="warning",
    )
