//! `plugin_config`.

use super::Plugins;

resource! {
    /// Plugins that routes share.
    pub struct PluginConfig {
        /// They fill the gaps of a route's own.
        pub plugins: Plugins,
    }
}
