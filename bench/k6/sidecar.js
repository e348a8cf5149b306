// The sidecar of a client, whose service has 5,000 routes by prefix:
//   k6 run -e ROUTE=5000 -e TARGET=http://127.0.0.1:15001 bench/k6/sidecar.js
import { ask, common } from './common.js';

export const options = common;

export default function () {
  ask('server.default.svc.cluster.local:9080');
}
