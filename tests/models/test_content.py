"""A model that predicts from what is known of films and users, by hand."""

import pytest
import torch

from fedlab.core import ParameterError
from fedlab.models import content, genre_profile


def test_content_predicts_from_shared_parameters_only(split, clicks):
    genres = split.train.catalogue.categories.float()
    profile = genre_profile(split.train)
    assert profile.shape == (671, genres.shape[1])
    model = content(genres, profile, hidden=8)
    assert not model.private
    x = torch.cat([genres[5], profile[7], genres[5] * profile[7]])
    p = model.init(0)
    p["bias"][5] = 0.5
    by_hand = (x @ p["w1"][0] + p["b1"][0]).relu() @ p["w2"][0] + p["b2"][0, 0] + 0.5
    rows = {n: v[torch.tensor([[5]])] if n == "bias" else v for n, v in p.items()}
    batch = {"user": torch.tensor([[7]]), "item": torch.tensor([[5]])}
    torch.testing.assert_close(model.predict(rows | model.constants, batch)[0, 0], by_hand)


def test_fewer_columns_for_users_than_for_items_are_refused():
    with pytest.raises(ParameterError, match=r"user_features=\(2, 3\): give 4 columns or more"):
        content(torch.zeros(3, 4), torch.zeros(2, 3))
