"""PSPNet with narrow heads for scenes of about 160x120 on a CPU.

As in the paper, the main head reads stage 4 at stride 8, and an auxiliary FCN head with loss weight
0.4 reads stage 3; they have 64 and 32 channels instead of 512 and 256. The task adds the backbone,
the input channels and the number of classes.
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", pad_val=0, seg_pad_val=255),
    decode_head=dict(
        type="PSPHead",
        channels=64,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg={},
    test_cfg=dict(mode="whole"),
)
