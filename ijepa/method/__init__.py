"""The paper as pure tensor functions: encoder, predictor, masks, loss, schedules."""
