"""How a test has its programs compiled where the way of all tests (conftest.py) does not do."""

# With XLA's emitters of fused loops, as commands have them. Two programs that compute the same are rounded alike more
# often so: bit for bit where a step stands in a loop and where it does not; and networks with ReLU, whose gradients
# jump where a value next to 0 falls on its other side, by two ways.
FUSED = {"xla_cpu_use_fusion_emitters": True}
