"""The record of a proof is short to print."""

from dataclasses import replace

import torch

from implicitnets.analysis import Bounds, Certificate, Certificates, Verdict

KNOWN = Bounds(torch.zeros(50), torch.ones(50))
PROVED = Certificate(
    verdict=Verdict.ROBUST,
    method="crown",
    margin=0.12345,
    worst=0.25,
    adversarial=None,
    label=3,
    states=KNOWN,
    outputs=KNOWN,
    seconds=0.0123,
)


def test_a_certificate_prints_what_it_says_and_no_tensors():
    assert repr(PROVED) == str(PROVED) == "Certificate(robust by crown, margin in [0.1235, 0.25], 0.012 s)"
    nothing = replace(PROVED, verdict=Verdict.UNKNOWN, method=None, margin=-torch.inf, worst=torch.inf, seconds=0.0)
    assert repr(nothing) == "Certificate(unknown, margin in [-inf, inf], 0 s)"


def test_a_batch_prints_its_counts():
    batch = Certificates((PROVED, PROVED, replace(PROVED, verdict=Verdict.FALSIFIED)))
    assert str(batch) == "3 samples: 2 robust, 1 falsified, 0 unknown; 0.04 s"
    assert repr(batch) == f"Certificates({batch})"
    assert "tensor" not in repr(batch[:1])
