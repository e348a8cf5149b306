// A gateway with 5,000 routes, the n-th of which takes /svc/N/*:
//   k6 run -e ROUTE=5000 -e TARGET=http://127.0.0.1:9080 bench/k6/gateway.js
import { ask, common } from './common.js';

export const options = common;

export default function () {
  ask('bench');
}
