//! The tailnet module: one list of tests for both kinds of node, and tests that need the real one.

mod embedded;
mod join;

mod contract {
    mod fake {
        use tailbone::tailnet::fake::FakeTailnet;

        testkit::node_contract!(FakeTailnet::new());
    }

    mod embedded {
        use testkit::tailnet::DevnetTailnet;

        testkit::node_contract!(DevnetTailnet::new());
    }
}
