"""How good features are: kNN and linear probe, compared with an untrained encoder and with raw pixels.

Public: `scores.answer` and `Scores`, `compare.mcnemar`, `subject.Subject`, `validation.Validation`, `result.judge`.
"""
