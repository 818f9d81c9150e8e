from millrace_tuner.findings import findings

RESULT = {
    "base_valid": {"valid_loss": 5.25, "valid_mean_token_accuracy": 0.125, "valid_base_loss": 3.0},
    "valid": {"valid_loss": 1.5, "valid_mean_token_accuracy": 0.75, "valid_base_loss": 3.125},
    "parity": {"parity_adapter": 0.0, "parity_merge": 0.0123},
}


def test_a_job_says_what_was_learned_forgotten_and_kept() -> None:
    learned, forgotten, parity = findings(RESULT)
    assert learned.message == (
        "On the held-out examples, before and after: "
        "loss 5.250 -> 1.500, mean token accuracy 0.125 -> 0.750"
    )
    assert learned.metrics["valid_loss_before"] == 5.25
    assert learned.metrics["valid_loss_after"] == 1.5
    assert "was 3.000 before and is 3.125 after" in forgotten.message
    assert "adapter 0, merge 0.012" in parity.message
    assert parity.metrics == RESULT["parity"]


def test_what_was_not_measured_is_not_told() -> None:
    assert findings({"valid": {"valid_reward_mean": 1.0}, "base_valid": {}, "parity": {}}) == ()
    (learned,) = findings({"valid": {"valid_loss": 1.0}, "base_valid": {"valid_loss": 2.0}})
    assert learned.key == "learned"
