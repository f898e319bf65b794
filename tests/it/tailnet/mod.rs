//! The tailnet module: one list of tests for both kinds of node, and tests that need the real one.

mod embedded;
mod join;

mod contract {
    mod fake {
        use crate::support::world::FakeWorld;

        crate::node_contract!(FakeWorld::default());
    }

    mod embedded {
        use crate::support::world::EmbeddedWorld;

        crate::node_contract!(EmbeddedWorld::new());
    }
}
