"""What every test shares."""

import torch

# Tests run many tiny operations: handing them between threads costs more than it saves.
torch.set_num_threads(1)
