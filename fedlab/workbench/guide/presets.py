"""Presets: settings to begin with, by a name that says what is to be seen; cards go with them."""

from fedlab.core import Settings

_USERS = Settings(rounds=60, cohort=64, local_lr=1.0, server_lr=50.0, weighting="equal")
_PLATFORMS = Settings(
    rounds=60, partition="by genre", cohort=10, local_lr=20.0, server_lr=2.0, batch_size=256
)
PRESETS = {
    "671 users, matrix factorisation": _USERS,
    "few clients: 8 users a round": _USERS.replace(rounds=200, cohort=8, server_lr=5.0),
    "10 platforms that differ in taste": _PLATFORMS.replace(alpha=0.1),
    "practice: 10 e-commerce platforms, averaged": _PLATFORMS,
    "practice: 5 video platforms, the best model selected": Settings(
        partition="by activity",
        platforms=5,
        cohort=5,
        rounds=30,
        local_lr=1.0,
        local_epochs=2,
        batch_size=256,
        model="content",
        aggregation="best models",
    ),
    "asynchronous: a buffer of 10": _USERS.replace(
        schedule="buffered", rounds=300, server_lr=80.0, dim=16, measure_every=6
    ),
    "private: a clip, and noise on the sum": _USERS.without(["weighting"]).replace(
        uplink="clip + gaussian noise", sampling="poisson", clip=0.5, noise=0.5, delta=1e-3
    ),
    "an eighth of the bytes up: 4 bits a number": _USERS.replace(uplink="error feedback"),
    "under attack: one in ten lies, the median holds": _USERS.without(["weighting"]).replace(
        uplink="poison", aggregation="coordinate median"
    ),
    "implicit: users solve their own vectors": Settings(
        local="implicit", recency=1.0, rounds=20, cohort=671
    ),
    "EASE: which items are clicked together": Settings(
        local="ease", model="item-item", least_clicks=10, rounds=10, cohort=64
    ),
    "texts and clicks: what MiniLM says of a film": _USERS.replace(
        model="hybrid", server_optimizer="adam", server_lr=0.03
    ),
    "MiniLM fine-tuned by adapters, minutes to begin": Settings(
        model="lora",
        partition="by genre",
        alpha=1.0,
        cohort=10,
        rounds=8,
        batch_size=16,
        local_lr=0.1,
        warm_up=4,
        server_optimizer="adam",
        server_lr=1e-3,
        server_epsilon=1e-6,
        measure_every=4,
    ),
    "stars, not clicks": Settings(
        task="ratings", model="linear", rounds=60, cohort=64, local_lr=0.01
    ),
}
