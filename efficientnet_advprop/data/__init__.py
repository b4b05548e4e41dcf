"""What the network sees: records, pre-processing, augmentation, and the pipeline that
feeds the trainer and the evaluator.
"""
