import pytest
from epochs import history

from bantam.training.verdict import Verdict, standard_error
from bantam.training.verdict import judge as judged


def judge(accuracies: list[float], not_judged: str = "") -> Verdict:
    return judged(
        history(*accuracies),
        target=99.4,
        last_epochs=5,
        most_epochs=15,
        not_judged=not_judged,
        most_frequent=11.35,
        scored_images=10_000,
    )


def test_met_is_every_one_of_the_last_epochs() -> None:
    verdict = judge([98.0, 99.4, 99.5, 99.41, 99.4, 99.45])
    assert verdict.verdict == "met"
    assert "the lowest is 99.40 %" in verdict.reason
    assert verdict.objective == pytest.approx((99.4 + 99.5 + 99.41 + 99.4 + 99.45) / 5)
    assert (verdict.best_accuracy, verdict.best_epoch) == (99.5, 3)


def test_not_met_says_which_epochs_and_how_far() -> None:
    verdict = judge([99.9, 99.4, 99.38, 99.41, 99.4, 99.25])
    assert verdict.verdict == "not met"
    assert "missed in epoch 3 by 0.02, epoch 6 by 0.15 points" in verdict.reason


def test_not_judged_says_why() -> None:
    assert judge([99.9] * 5, "data=mnist5k").verdict == "not judged"
    assert judge([99.9] * 5, "data=mnist5k").reason == "data=mnist5k"
    verdict = judge([99.9] * 4)
    assert verdict.verdict == "not judged"
    assert "4 epochs were trained, and the target is about the last 5" in verdict.reason
    assert verdict.objective == pytest.approx(99.9)


@pytest.mark.parametrize(("best", "at_chance"), [(11.35, True), (12.2, True), (12.5, False), (98.0, False)])
def test_a_network_that_never_leaves_chance_is_called_so(best: float, at_chance: bool) -> None:
    verdict = judge([9.8, 10.1, best, 11.35, 9.8])
    assert verdict.verdict == "not met"
    assert verdict.at_chance == at_chance
    assert ("never left chance" in verdict.reason) == at_chance


def test_one_epoch_is_one_epoch() -> None:
    assert judge([99.9]).reason.startswith("1 epoch was trained, and the target is about the last 5")


def test_the_error_of_an_accuracy_is_binomial() -> None:
    assert standard_error(99.0, 10_000) == pytest.approx(0.0995, abs=1e-4)
