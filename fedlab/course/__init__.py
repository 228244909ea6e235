"""What the lessons share."""

__all__ = []
