"""Training: objectives, the trainer, its checkpoints, and the export of a run as a checkpoint folder."""
