//! The tailnet module: one list of tests for both kinds of node, and tests that need the real one.

mod embedded;
mod join;

mod contract {
    mod fake {
        use testkit::world::FakeWorld;

        testkit::node_contract!(FakeWorld::default());
    }

    mod embedded {
        use testkit::world::EmbeddedWorld;

        testkit::node_contract!(EmbeddedWorld::new());
    }
}
