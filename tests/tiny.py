"""A backbone small enough for tests, with every kind of part that the real ones have."""

TINY_BACKBONE = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 4, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 8, 8],
    "stage_out_channels": [8, 16, 16, 32],
    "hidden_sizes": [8, 16, 16, 32],
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "use_learnable_affine_block": True,
    "out_features": ["stage3", "stage4"],
}
