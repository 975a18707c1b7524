"""Seconds of predictions from before they were wall time that grows with the pixels.

They held the load of the model, or a part only of the forward pass, and estimates would be made
of them for many requests to come. Without them a model's speed counts as not measured yet.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "UPDATE steps SET seconds = NULL"
        " WHERE process_id = 'terratorch-inference' AND seconds IS NOT NULL"
    )


def downgrade() -> None:
    """The seconds are gone, and nothing needs them."""
