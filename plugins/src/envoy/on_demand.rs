//! Envoy's on_demand filter (source/extensions/filters/http/on_demand): asks for virtual hosts and clusters when a request
//! wants them. Both come by themselves here, or are refused where they are asked for so (VHDS, ODCDS): there is nothing
//! left to wait for.

use crate::envoy;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin};
use sixfold_xds_api::pb::envoy::extensions::filters::http::on_demand::v3::{OnDemand, PerRouteConfig};
use sixfold_xds_api::refuse;

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless()
}

#[allow(clippy::needless_pass_by_value)] // the form that `envoy::filter` asks for
fn build(config: OnDemand, levels: Vec<PerRouteConfig>, _: &BuildContext) -> Built {
    let OnDemand { odcds } = &config;
    refuse!(odcds);
    for level in &levels {
        let PerRouteConfig { odcds } = level;
        refuse!(odcds);
    }
    Ok(Plugin::default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing;

    #[test]
    fn clusters_on_demand_are_refused_by_name() {
        let built = |config: &str, levels: &[&str]| {
            testing::filter_of::<OnDemand, PerRouteConfig>(&factory(), config, levels).map(drop)
        };
        assert_eq!(built("{}", &["{}"]), Ok(()));
        let odcds = "{odcds: {source: {ads: {}}}}";
        assert_eq!(built(odcds, &[]).unwrap_err(), "odcds: is not supported");
        assert_eq!(built("{}", &[odcds]).unwrap_err(), "odcds: is not supported");
    }
}
