"""Operations between the replicas of a step: reductions, random numbers, execution
order.
"""
