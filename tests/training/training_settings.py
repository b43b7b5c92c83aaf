"""Settings that train on a small clip in seconds, with all features of training enabled."""

SMALL = {
    "data.size": 64, "generator.scales": 2,
    "schedule.lengths": [1, 2, 4], "schedule.frames": 2, "optimiser.warm_up": 2,
    "discriminator.width": 8, "discriminator.layers": 2, "discriminator.scales": 1,
    "discriminator.crop": 24, "output.log_every": 1, "output.preview_seconds": 0.1,
    "loop.precision": "32", "loop.bptt_steps": 2,
    "losses.discriminators.temporal_1": 0.5, "losses.discriminators.temporal_3": 0.25,
    "losses.discriminators.temporal_9": 0.25,
}  # fmt: skip
