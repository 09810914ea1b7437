"""Stands in for `tailfin pretrain` where a test is about running cells: a run of ten steps, resumable, in a second.

It behaves like the real one: --config FILE --out RUN or --resume RUN, a first signal saves and stops, result.json is
written last. Every start and every end is a line of RUN/story. A seed of 13 fails.
"""

import json
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

STEPS = 10
SECONDS = float(os.environ.get("FAKE_SECONDS", "0.3"))


def main(words: list[str]) -> None:
    resumed = words[0] == "--resume"
    run = Path(words[1] if resumed else words[3])
    if not resumed:
        config = Path(words[1]).read_text()
        (run / "config.toml").write_text(config)
    config = tomllib.loads((run / "config.toml").read_text())
    story = (run / "story").open("a")
    print("resumed" if resumed else "begun", os.environ["OMP_NUM_THREADS"], file=story, flush=True)
    if (run / "result.json").exists():
        sys.exit("the cell was finished already")
    if config["seed"] == 13:
        print("a warning\ntailfin: the loss is nan since step 3\n", file=sys.stderr)
        sys.exit(1)
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: asked.append(n))
    saved = run / "checkpoint"
    for step in range(int(saved.read_text()) if saved.exists() else 0, STEPS):
        time.sleep(SECONDS / STEPS)
        saved.write_text(str(step + 1))
        if asked and step + 1 < STEPS:
            print("stopped", len(asked), file=story, flush=True)
            sys.exit(128 + asked[0])
    linear = 50.0 + len(config["momentum"]) + config["seed"]
    scores = {"knn": linear, "linear": linear}
    result = {
        **scores,
        "validation_knn": linear,
        "scores": {"backbone_online": scores},
        "untrained": scores,
        "target_cost": {"predicted": 0.5, "measured": 0.5},
        "images_per_second": 1.0,
        "seconds": 1.0,
        "verdict": {"state": "healthy"},
        "device": "none",
        "versions": {"torch": "2"},
        "parts": [{"name": name} for name in ("stem", "layer1", "layer2", "layer3", "layer4", "projector")],
        "momentum_parts": ["projector"] if config["momentum"] == "projector" else [],
    }
    whole = run / "result.part"
    whole.write_text(json.dumps(result))
    whole.rename(run / "result.json")
    print("finished", file=story, flush=True)


main(sys.argv[1:])
