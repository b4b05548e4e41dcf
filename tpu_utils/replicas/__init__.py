"""What happens between the replicas of one step: reductions, random numbers, order."""
