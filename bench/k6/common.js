// What gateway.js and sidecar.js have in common: one route of 5,000 is asked, each answer is checked, and one wrong
// status or body makes k6 end with a status other than 0.
//
// From the environment (k6 run -e NAME=VALUE):
//   TARGET       where the proxy is (http://127.0.0.1:9080)
//   ROUTE        which route is asked, 1 to 5000 (3000)
//   RATE         requests a second; none: as fast as it goes
//   SECONDS      for how long (10)
//   CONNECTIONS  how many clients there are (64)
//   EXPECT       the whole body of a right answer ("hello world, this is a body\n")
import http from 'k6/http';
import { check } from 'k6';

const RATE = Number(__ENV.RATE || 0);
const SECONDS = Number(__ENV.SECONDS || 10);
const CONNECTIONS = Number(__ENV.CONNECTIONS || 64);
const EXPECT = __ENV.EXPECT || 'hello world, this is a body\n';
const URL = `${__ENV.TARGET || 'http://127.0.0.1:9080'}/svc/${__ENV.ROUTE || 3000}/api`;

const steady = {
  executor: 'constant-arrival-rate',
  rate: RATE,
  timeUnit: '1s',
  duration: `${SECONDS}s`,
  preAllocatedVUs: CONNECTIONS,
  maxVUs: CONNECTIONS * 4,
};
const full = { executor: 'constant-vus', vus: CONNECTIONS, duration: `${SECONDS}s` };

export const common = {
  scenarios: { load: RATE > 0 ? steady : full },
  summaryTrendStats: ['med', 'p(99)', 'max'],
  thresholds: { checks: ['rate==1'] },
};

export function ask(host) {
  const answer = http.get(URL, { headers: { Host: host } });
  check(answer, {
    'status is 200': (got) => got.status === 200,
    'body is the right one': (got) => got.body === EXPECT,
  });
}
