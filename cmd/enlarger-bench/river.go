package main

import (
	"enlarger/storage"
	"enlarger/testbed"
)

func riverPeers(*bed, *options, *testbed.PostgresServer, *storage.Store) []*peer { return nil }
