import torch

from bantam.models import V2, Skeleton
from bantam.training.average import Average


def test_the_average_is_that_of_the_weights_and_statistics_step_by_step() -> None:
    torch.manual_seed(0)
    model = V2(width=4).train()
    average = Average(model, 0.5)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 9):
        model(torch.randn(8, 1, 28, 28))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        kept = min(0.5, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = kept * expected[name] + (1 - kept) * value
            else:
                expected[name] = value
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-4, atol=1e-5)
    assert kept == 0.5
    assert not average.model.training


def test_a_network_without_batch_norm_is_averaged() -> None:
    model = Skeleton()
    average = Average(model, 0.5)
    assert not average.counts
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update()
    now, averaged = next(model.parameters()), next(average.model.parameters())
    torch.testing.assert_close(now - averaged, torch.full_like(now, 2 / 11))


def test_weights_that_lie_elsewhere_are_averaged() -> None:
    model = Skeleton()
    average = Average(model, 0.5)
    for parameter in model.parameters():  # as a network does that limits its weights
        parameter.data = parameter.data + 1
    average.update()
    now, averaged = next(model.parameters()), next(average.model.parameters())
    torch.testing.assert_close(now - averaged, torch.full_like(now, 2 / 11))
