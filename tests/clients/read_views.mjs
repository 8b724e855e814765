// read_views.mjs PORT MODULES: node-postgres asks the server, over Postgres wire.
//
// Exits with 1 and says which comparisons failed.
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { isDeepStrictEqual } from "node:util";

const [port, modules] = process.argv.slice(2);
const require = createRequire(resolve(modules, "package.json"));
const { Client } = require("pg");
const Cursor = require("pg-cursor");
const { from, to } = require("pg-copy-streams");

const COUNTS = "SELECT video_id, total_views FROM video_views ORDER BY video_id";
let made = 0;
let faults = 0;

function same(what, found, wanted) {
  made += 1;
  if (isDeepStrictEqual(found, wanted)) return;
  faults += 1;
  console.log(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

async function state(client, sql, values) {
  try {
    await client.query(sql, values);
    return "no error";
  } catch (error) {
    return error.code;
  }
}

async function asAnalyst(client) {
  const counts = (await client.query(COUNTS)).rows;
  same("there is something", counts.length > 100, true);
  const [first, second] = counts;
  const one = "SELECT total_views FROM video_views WHERE video_id = $1";
  same("a parameter", (await client.query(one, [first.video_id])).rows, [{ total_views: first.total_views }]);
  for (const { video_id, total_views } of [first, second, first]) {
    const rows = (await client.query({ name: "one", text: one, values: [video_id] })).rows;
    same("a named statement", rows, [{ total_views }]);
  }
  const any = "SELECT count(*) AS n FROM video_views WHERE video_id = ANY($1)";
  same("an array", (await client.query(any, [[first.video_id, second.video_id]])).rows, [{ n: "2" }]);
  same("several statements", (await client.query("SELECT 1 AS a; SELECT 2 AS a")).map((done) => done.rows[0].a), ["1", "2"]);
  const cursor = client.query(new Cursor(COUNTS));
  const portions = [...(await cursor.read(7)), ...(await cursor.read(7))];
  await cursor.close();
  same("a cursor", portions, counts.slice(0, 14));
  await client.query("BEGIN READ ONLY");
  const twice = [await client.query(COUNTS), await client.query(COUNTS)].map((done) => done.rows);
  await client.query("COMMIT");
  same("a transaction reads one snapshot", twice[0], twice[1]);
  const lines = (await client.query(to(`COPY (${COUNTS}) TO STDOUT`)).toArray()).join("").trimEnd().split("\n");
  same("COPY TO", lines.length, counts.length);
  const at = (await client.query("SELECT timestamptz '2026-01-02T03:04:05Z' AS at")).rows[0].at;
  same("an instant", at, new Date("2026-01-02T03:04:05Z"));
  same("a wrong column", await state(client, "SELECT nothing FROM video_views"), "42703");
  same("a table that may only be read", await state(client, "TRUNCATE exclusions"), "42501");
}

async function asBilling(client) {
  const id = "00000000-0000-4000-8000-0000000000";
  const insert = "INSERT INTO exclusions VALUES ($1, $2, $3)";
  same("INSERT", (await client.query(insert, [`${id}01`, "by node", new Date(0)])).rowCount, 1);
  const load = client.query(from("COPY exclusions FROM STDIN (FORMAT csv)"));
  await pipeline(Readable.from([`${id}02,by node,2026-01-01T00:00:00Z\n${id}03,"by`, ` node",2026-01-01`]), load);
  same("COPY FROM", load.rowCount, 2);
  const rows = (await client.query("SELECT event_id FROM exclusions WHERE reason = 'by node' ORDER BY 1")).rows;
  same("all rows", rows.map((row) => row.event_id), ["01", "02", "03"].map((end) => id + end));
  const wrong = client.query(from("COPY exclusions FROM STDIN (FORMAT csv)"));
  const told = await pipeline(Readable.from([`${id}04,by node,never\n`]), wrong).catch((error) => error);
  same("a wrong line", [told.code, told.where], ["22007", 'COPY exclusions, line 1, column recorded_at: "never"']);
  same("DELETE", (await client.query("DELETE FROM exclusions WHERE reason = $1", ["by node"])).rowCount, 3);
}

for (const [user, ask] of [["analyst", asAnalyst], ["billing", asBilling]]) {
  const client = new Client({ host: "127.0.0.1", port: Number(port), user, database: "viewledger" });
  await client.connect();
  await ask(client);
  await client.end();
}
console.log(`node-postgres: ${made} comparisons, ${faults} faults`);
process.exit(faults ? 1 : 0);
