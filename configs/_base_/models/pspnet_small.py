"""PSPNet with narrow heads for scenes of about 160x120 on a CPU.

The main head has 64 channels instead of 512, the auxiliary FCN head 32 instead of 256; the latter
reads stage 3 and has the loss weight 0.4, as in the paper. The task adds the backbone and the
number of classes, and chooses the stages that the main head reads.
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
