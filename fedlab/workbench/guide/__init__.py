"""What leads through the workbench: presets to begin with, a card beside each, and challenges."""

from fedlab.workbench.guide.cards import CARDS, Card
from fedlab.workbench.guide.challenges import CHALLENGES, Attempt, Challenge
from fedlab.workbench.guide.presets import PRESETS

__all__ = ["CARDS", "CHALLENGES", "PRESETS", "Attempt", "Card", "Challenge"]
