#!/usr/bin/env node
// Stand-in for Prisma's native `schema-engine`, which is downloaded at the first start: the same command line and JSON-RPC on
// stdio, but the engine is Prisma's own WASM build, from its packages. Copied beside node_modules by tests/servers/prisma.py.
const fs = require('node:fs'), path = require('node:path'), rl = require('node:readline')
const W = path.join(__dirname, 'node_modules/@prisma/schema-engine-wasm')
const pg = require('pg')
const { PrismaPg } = require('@prisma/adapter-pg')
const { bindMigrationAwareSqlAdapterFactory } = require('@prisma/driver-adapter-utils')
// catalogue types the adapter cannot name: "char" (18) -> text
const hrd = pg.Query.prototype.handleRowDescription
pg.Query.prototype.handleRowDescription = function (m) { for (const f of m.fields) if (f.dataTypeID === 18 || f.dataTypeID === 19) f.dataTypeID = 25; return hrd.call(this, m) }
const argv = process.argv.slice(2), models = []
let ds = {}, cli
for (let i = 0; i < argv.length; i++) {
  if (argv[i] === '--datamodels' || argv[i] === '-d') models.push(argv[++i])
  else if (argv[i] === '--datasource') { const v = argv[++i]; ds = v[0] === '{' ? JSON.parse(v) : { url: v } }
  else if (argv[i] === 'cli') cli = argv[i + 1]
  else if (argv[i] === '--version' || argv[i] === '-V') { console.log('schema-engine-cli ' + require(path.join(W, 'package.json')).version.split('.').pop()); process.exit(0) }
}
const url = new URL(ds.url ?? process.env.DATABASE_URL)
const cfg = (u, database) => ({ host: u.hostname, port: +(u.port || 5432), user: decodeURIComponent(u.username), password: decodeURIComponent(u.password) || undefined,
  database: database ?? decodeURIComponent(u.pathname.slice(1)), max: 1, allowExitOnIdle: true, connectionTimeoutMillis: 5000 })
const schema = url.searchParams.get('schema') ?? 'public'
async function one(c, sql) { const k = new pg.Client(c); await k.connect(); try { return await k.query(sql) } finally { await k.end() } }
function logErr(message, error_code) { process.stderr.write('\n' + JSON.stringify({ level: 'ERROR', target: 'schema_engine::logger', fields: { message, error_code } }) + '\n'); process.exit(1) }
const whole = a => { a.executeScript = async q => { try { await a.client.query(q) } catch (e) { a.onError(e) } }; return a }
class Pg extends PrismaPg { // adapter-pg drops the shadow database before it closes its own pool, which PostgreSQL refuses
  // adapter-pg splits scripts at every ";": send the whole script as one simple query, as the native engine does
  async connect() { return whole(await super.connect()) }
  async connectToShadowDb() {
    const name = 'prisma_migrate_shadow_db_' + globalThis.crypto.randomUUID()
    await one(cfg(url, 'postgres'), `create database "${name}"`)
    const a = whole(await new PrismaPg(cfg(url, name), { schema }).connect()), d = a.dispose.bind(a)
    a.dispose = async () => { await d(); await one(cfg(url, 'postgres'), `drop database if exists "${name}" with (force)`) }
    return a
  }
}
async function main() {
  if (cli) {
    const db = url.pathname.slice(1)
    try {
      if (cli === 'can-connect-to-database') await one(cfg(url), 'select 1')
      else if (cli === 'create-database') await one(cfg(url, 'postgres'), `create database "${db}"`)
      else if (cli === 'drop-database') await one(cfg(url, 'postgres'), `drop database "${db}"`)
      return process.exit(0)
    } catch (e) {
      if (e.code === '3D000') logErr(`Database \`${db}\` does not exist`, 'P1003')
      if (e.code === 'ECONNREFUSED' || e.code === 'ENOTFOUND') logErr(`Can't reach database server at \`${url.hostname}:${url.port || 5432}\``, 'P1001')
      if (e.code === '28P01' || e.code === '28000') logErr(`Authentication failed against database server`, 'P1000')
      logErr(e.message, 'P1010')
    }
  }
  const glue = await import(path.join(W, 'schema_engine_bg.js'))
  const inst = new WebAssembly.Instance(new WebAssembly.Module(fs.readFileSync(path.join(W, 'schema_engine_bg.wasm'))), { './schema_engine_bg.js': glue })
  glue.__wbg_set_wasm(inst.exports); inst.exports.__wbindgen_start()
  globalThis.PRISMA_WASM_PANIC_REGISTRY ??= { m: '', set_message(x) { this.m = x }, get() { return this.m } }
  const adapter = bindMigrationAwareSqlAdapterFactory(new Pg(cfg(url), { schema }))
  const datamodels = models.length ? models.map(f => [f, fs.readFileSync(f, 'utf8')]) : undefined
  let eng
  const get = async () => (eng ??= await glue.SchemaEngine.new({ datamodels }, l => process.env.SHIM_DEBUG && process.stderr.write(l + '\n'), adapter))
  let pending = Promise.resolve(), open = 0
  rl.createInterface({ input: process.stdin }).on('line', line => {
    const m = JSON.parse(line); if (!m.method) return
    pending = pending.then(async () => {
      const send = o => process.stdout.write(JSON.stringify({ id: m.id, jsonrpc: '2.0', ...o }) + '\n')
      try {
        if (process.env.SHIM_DEBUG) process.stderr.write('RPC ' + line.slice(0, 400) + '\n')
        let p = m.params, r
        if (m.method === 'getDatabaseVersion') r = await (await get()).version()
        else if (m.method === 'dbExecute') { await one(p.datasourceType?.tag === 'url' ? cfg(new URL(p.datasourceType.url)) : cfg(url), p.script); r = null }
        else r = await (await get())[m.method](p)
        if (m.method === 'diff' && r?.stdout) { process.stdout.write(JSON.stringify({ id: 10000 + m.id, jsonrpc: '2.0', method: 'print', params: { content: r.stdout } }) + '\n') }
        send({ result: r ?? null })
      } catch (e) {
        if (process.env.SHIM_DEBUG) process.stderr.write('ERR ' + require('util').inspect(e, { depth: 5 }) + '\n')
        send({ error: { code: 4466, message: 'An error happened. Check the data field for details.', data: { is_panic: e?.name === 'RuntimeError', message: e?.message ?? String(e), error_code: e?.code ?? e?.error_code ?? null, meta: e?.meta ?? null } } })
      }
    })
  }).on('close', () => pending.then(() => process.exit(0)))
}
main().catch(e => logErr(e.message))
