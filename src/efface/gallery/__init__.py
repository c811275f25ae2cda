"""Pictures of one side, by what decides their pixels."""
