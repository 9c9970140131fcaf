"""Two networks that train against each other, watched with one monitor each: a GAN on a ring of eight Gaussians.

`python examples/gan.py --steps 300` writes `runs/gan/generator` and `runs/gan/discriminator`; `streamlit run
dashboard.py -- runs/gan` shows them side by side.
"""

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

NOISE = 8


def ring(n: int) -> Tensor:
    angles = torch.randint(8, (n,)) * (math.pi / 4)
    return torch.stack([angles.cos(), angles.sin()], dim=1) + 0.05 * torch.randn(n, 2)


def network(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)]
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/gan"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    generator, discriminator = network(NOISE, 2), network(2, 1)
    generator_steps = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    discriminator_steps = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def loss_of_discriminator(real: Tensor, fake: Tensor) -> Tensor:
        right = F.softplus(-discriminator(real)).mean()
        return right + F.softplus(discriminator(fake)).mean()

    def loss_of_generator(noise: Tensor) -> Tensor:
        return F.softplus(-discriminator(generator(noise))).mean()

    with (
        diagnostics.watch(generator, generator_steps, arguments.out / "generator") as of_generator,
        diagnostics.watch(discriminator, discriminator_steps, arguments.out / "discriminator") as of_discriminator,
    ):
        for step in range(1, arguments.steps + 1):
            real, noise = ring(arguments.batch), torch.randn(arguments.batch, NOISE)
            fake = generator(noise).detach()

            discriminator_steps.zero_grad()
            discriminator_loss = loss_of_discriminator(real, fake)
            discriminator_loss.backward()
            discriminator_steps.step()
            of_discriminator.step(discriminator_loss, closure=lambda: loss_of_discriminator(real, fake))

            generator_steps.zero_grad()
            generator_loss = loss_of_generator(noise)
            generator_loss.backward()
            generator_steps.step()
            of_generator.step(generator_loss, closure=lambda: loss_of_generator(noise))
            if step % 50 == 0:
                print(f"step {step:4d}  generator {generator_loss:.3f}  discriminator {discriminator_loss:.3f}")

    for name in ("generator", "discriminator"):
        for finding in diagnostics.diagnose(diagnostics.load(arguments.out / name)).findings:
            print(name, finding.severity, finding.kind, finding.cause, finding.first_step, finding.summary)


if __name__ == "__main__":
    main()
