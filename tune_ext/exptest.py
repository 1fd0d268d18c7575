"""ExpTest: the learning rate found and tuned by tests for exponential decay of the loss.

Source: Chaudhry, Mizuno, "Loss-Curve Hypothesis Testing for Autonomous Learning-Rate
Selection", arXiv 2411.16975. The public sources give the theory, α = 0.05, β = 0.33 and a window
of one epoch, not every line of the algorithm; what completes it is ours, and said to be so where
it stands.

A network linearised around its weights, under squared loss and gradient descent with rate η,
has error modes e_i(t) = (1 − ηλ_i)^t e_i(0). While 0 < ηλ_i < 2 for all of them, the loss is a
sum of decaying exponentials plus a floor: the loss curve of a run that converges passes a test
for exponential decay. Three parts follow from that:

* `learning_rate_bound`: 2/λ_max, from the training inputs alone;
* `Ladder`: short runs at bound·β^(−index) find the rate to begin with;
* `Tuner`: windows of a training's losses lower the rate when the decay has ended.

All of it is pure: values in, decisions out, state as versioned JSON; neither torch nor Ray.

>>> bound = learning_rate_bound([[[2.0, 0.0], [0.0, 2.0]]])
>>> ladder = Ladder(bound, steps=20)
>>> while not ladder.finished:
...     for rung in ladder.ask():
...         test = RungTest(ladder.steps, ladder.alpha)
...         w = 1.0                     # gradient descent on w²/2, which is stable below 2
...         while not test.done:
...             complete = test.update(w * w / 2)
...             w -= rung.lr * w
...         ladder.tell(rung.index, test.result())
>>> round(bound, 2), round(ladder.lr, 2)
(0.4, 1.21)
"""

from __future__ import annotations

from tune_ext._curvature import learning_rate_bound
from tune_ext._decay import DecayResult, DecayTest, Verdict
from tune_ext._explanation import Explanation
from tune_ext._ladder import Ladder
from tune_ext._rung import Rung, RungResult, RungTest
from tune_ext._tuner import Action, Correction, Tuner

__all__ = [
    "Action",
    "Correction",
    "DecayResult",
    "DecayTest",
    "Explanation",
    "Ladder",
    "Rung",
    "RungResult",
    "RungTest",
    "Tuner",
    "Verdict",
    "learning_rate_bound",
]
