"""Preconditioning, schedule and sampler against their definitions and against diffusers' scheduler for SVD."""

import pytest
import torch

from hdx_cli.humanfixer.diffusion import (
    denoised,
    karras_sigmas,
    noise_condition,
    sample,
    scale_input,
    start_ceiling,
    training_sigmas,
    velocity,
    velocity_to,
)

SHAPE = (2, 3, 5, 4, 4)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise, guess = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.3, 7.0], dtype=torch.float64)[:, None, None, None, None]
    return x0, noise, guess, sigma


def oracle(x0):
    return lambda z, sigma: velocity_to(x0, z, sigma)


def test_error_of_v_is_the_weighted_error_of_x0():
    x0, noise, guess, sigma = drawn()
    error = (guess - velocity(x0, noise, sigma)).square()
    weight = (sigma**2 + 1) / sigma**2
    torch.testing.assert_close(error, weight * (denoised(x0 + sigma * noise, guess, sigma) - x0).square())


def test_velocity_lands_on_x0():
    x0, noise, guess, sigma = drawn()
    z = x0 + sigma * noise
    torch.testing.assert_close(denoised(z, velocity(x0, noise, sigma), sigma), x0)
    torch.testing.assert_close(velocity_to(x0, z, sigma), velocity(x0, noise, sigma))
    torch.testing.assert_close(denoised(guess, velocity_to(x0, guess, sigma), sigma), x0)


def test_as_diffusers_scheduler_of_svd_has_it():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, timestep_type="continuous",
        timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(6)
    sigmas = karras_sigmas(6, 700.0, 0.002)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(noise_condition(sigmas[:-1]), scheduler.timesteps, rtol=1e-4, atol=1e-5)
    x0, noise, guess, _ = (t.float() for t in drawn())
    z, steps = sigmas[0] * noise, scheduler.timesteps
    torch.testing.assert_close(scale_input(z, sigmas[0]), scheduler.scale_model_input(z, steps[0]))
    ours = sample(lambda z, sigma: guess, torch.zeros_like(z), noise, torch.stack([sigmas[0], sigmas[1]]))
    theirs = scheduler.step(guess, steps[0], z).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_one_step_of_the_oracle_stays_on_the_line():
    x0, noise, *_ = drawn()
    sigmas = torch.tensor([5.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(sample(oracle(x0), x0, noise, sigmas), x0 + 2.0 * noise)


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_the_oracle_is_sampled_exactly(steps):
    x0, noise, guess, _ = drawn()
    sigmas = karras_sigmas(steps, 80.0).double()
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and sigmas[0] == pytest.approx(80)
    torch.testing.assert_close(sample(oracle(x0), guess, noise, sigmas), x0)


def test_seen_pixels_join_in_at_their_own_sigma():
    start, noise, *_ = drawn()
    seen = torch.zeros(2, 3, 1, 4, 4, dtype=torch.float64)
    seen[..., :2] = 1
    ceiling = start_ceiling(seen, 10.0, 1.0)
    assert ceiling[..., :2].allclose(torch.tensor(1.0).double())
    assert ceiling[..., 2:].allclose(torch.tensor(10.0).double())
    given = []

    def predict(z, sigma):
        given.append((float(sigma), z))
        return torch.ones_like(z)

    sigmas = torch.tensor([10.0, 4.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    sample(predict, start, noise, sigmas, ceiling)
    for sigma, z in given:
        at_start = (z - (start + sigma * noise)).abs() < 1e-9
        assert at_start[..., :2].all() == (sigma >= 1.0)
        assert at_start[..., 2:].all() == (sigma == 10.0)
    assert torch.equal(
        sample(predict, start, noise, sigmas), sample(predict, start, noise, sigmas, start_ceiling(seen, 10.0, None))
    )


def test_training_dwells_at_the_start():
    sigmas = training_sigmas(4000, 20.0, 0.7, 0.7, 1.6, torch.Generator().manual_seed(0))
    at_start = sigmas == 20.0
    assert at_start.float().mean() == pytest.approx(0.7, abs=0.03)
    assert sigmas[~at_start].log().mean() == pytest.approx(0.7, abs=0.15)
    assert sigmas[~at_start].log().std() == pytest.approx(1.6, abs=0.15)
