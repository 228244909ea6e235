"""Federated recommenders as their papers have them.

FedMF (Chai et al. 2020, "Secure federated matrix factorization") is `matrix_factorisation` by
`SGD`, and FedNCF (Perifanis, Efraimidis 2022) is `neural_collaborative_filtering` by `SGD`: both
keep the users' vectors private and share the rest, so they need nothing of their own here.
"""

from fedlab.algorithms.published.dpals import DPALS
from fedlab.algorithms.published.fedrap import AdditiveItems, FedRAP, additive_items
from fedlab.algorithms.published.gpfedrec import GPFedRec, PersonalPerceptron, personal_perceptron
from fedlab.algorithms.published.pfedrec import PersonalScores, PFedRec, personal_scores

__all__ = [
    "DPALS",
    "AdditiveItems",
    "FedRAP",
    "GPFedRec",
    "PFedRec",
    "PersonalPerceptron",
    "PersonalScores",
    "additive_items",
    "personal_perceptron",
    "personal_scores",
]
