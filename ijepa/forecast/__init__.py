"""What stages that have not run yet would cost, before a shard, a run or a feature is there."""
