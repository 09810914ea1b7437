"""What every test shares."""

import signal

import torch

# Tests run many tiny operations: handing them between threads costs more than it saves.
torch.set_num_threads(1)

# A shell that starts pytest in the background has it ignore these, and the processes that tests stop by them too.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)
