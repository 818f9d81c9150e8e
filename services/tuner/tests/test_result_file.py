from millrace_tuner import result_file


def test_lines_of_one_step_make_one_row_in_order_of_steps() -> None:
    lines = [
        '{"step": 1, "train_loss": 2.5, "train_accuracy": 0.25, "learning_rate": 0.001}',
        '{"step": 2, "train_loss": 2.0, "train_accuracy": 0.5, "learning_rate": 0.001}',
        '{"step": 10, "train_loss": 1.0, "train_accuracy": 0.75, "learning_rate": 0.0}',
        '{"step": 2, "valid_loss": 2.25, "valid_mean_token_accuracy": 0.5}',
    ]
    assert result_file.to_csv(lines).decode() == (
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate\n"
        "1,2.5,0.25,,,0.001\n"
        "2,2.0,0.5,2.25,0.5,0.001\n"
        "10,1.0,0.75,,,0.0\n"
    )
