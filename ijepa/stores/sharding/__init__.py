"""How a shard set is made: the plan, the tars, the checks, the processes."""
