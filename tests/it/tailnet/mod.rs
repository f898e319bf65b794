//! The tailnet module: one test list for both kinds of node, and what only the real one can show.

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
