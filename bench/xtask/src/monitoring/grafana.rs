//! A dashboard in Grafana's JSON, as `Import` and provisioning take it.

use serde_json::{Value, json};

use super::{Dashboard, Panel};

/// Grafana's grid is so wide.
const WIDTH: usize = 24;
const PANEL_WIDTH: usize = 8;
const PANEL_HEIGHT: usize = 8;

pub(super) fn json(board: &Dashboard) -> String {
    let (mut panels, mut y, mut id) = (Vec::new(), 0, 0);
    for (title, row) in board.rows {
        id += 1;
        let place = json!({"h": 1, "w": WIDTH, "x": 0, "y": y});
        panels.push(json!({"id": id, "type": "row", "title": title, "collapsed": false, "panels": [], "gridPos": place}));
        y += 1;
        for (number, panel) in row.iter().enumerate() {
            id += 1;
            let (line, column) = (number / (WIDTH / PANEL_WIDTH), number % (WIDTH / PANEL_WIDTH));
            panels.push(graph(panel, id, column * PANEL_WIDTH, y + line * PANEL_HEIGHT));
        }
        y += row.len().div_ceil(WIDTH / PANEL_WIDTH) * PANEL_HEIGHT;
    }
    let board = json!({
        "uid": board.name,
        "title": board.title,
        "description": board.description,
        "tags": ["sixfold"],
        "schemaVersion": 39,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {
                "name": "instance",
                "type": "query",
                "label": "Instance",
                "datasource": source(),
                "query": {"query": format!("label_values({}, instance)", board.instances), "refId": "instance"},
                "refresh": 2,
                "includeAll": true,
                "allValue": ".*",
                "multi": true,
                "current": {"text": "All", "value": "$__all"},
            },
        ]},
        "panels": panels,
    });
    format!("{board:#}\n")
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn graph(panel: &Panel, id: usize, x: usize, y: usize) -> Value {
    let targets = panel.queries.iter().enumerate().map(|(number, (legend, query))| {
        json!({
            "refId": format!("Q{number}"),
            "datasource": source(),
            "expr": query.replace("$i", "instance=~\"$instance\"").replace("$r", "$__rate_interval"),
            "legendFormat": legend,
        })
    });
    json!({
        "id": id,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": source(),
        "gridPos": {"h": PANEL_HEIGHT, "w": PANEL_WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": targets.collect::<Vec<_>>(),
    })
}
