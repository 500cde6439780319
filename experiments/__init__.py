"""Programs that use handgrad as its users do: train, compare gradients, measure."""
