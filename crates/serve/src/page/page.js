// recua's chat page. No dependencies. What a model, a server or a file says goes into the page as
// text nodes only: nothing here parses HTML, and Markdown is built node by node.

const $ = (id) => document.getElementById(id);

// An element: attributes, `on…` listeners, and children, of which strings become text nodes.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children);
  return node;
}

// ---- Markdown ---------------------------------------------------------------------------------

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(\s|$)/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DEEPEST = 12;

// The blocks of some lines, each as {kind, source, …}. Equal sources make equal nodes, so that only
// a block that changed is built again while an answer streams.
function blocksOf(lines) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    const start = i, line = lines[i];
    let block, match;
    if (!line.trim()) { i++; continue; }
    if ((match = FENCE.exec(line))) {
      const [, fence, language] = match, indent = line.search(/\S/), body = [];
      const closes = (text) => text.startsWith(fence) && !text.slice(fence.length).replaceAll(fence[0], '');
      for (i++; i < lines.length && !closes(lines[i].trim()); i++) {
        body.push(lines[i].slice(Math.min(indent, Math.max(0, lines[i].search(/\S/)))));
      }
      i++;
      block = { kind: 'code', language, text: body.join('\n') };
    } else if ((match = HEADING.exec(line))) {
      i++;
      block = { kind: 'heading', level: match[1].length, text: line.trim().slice(match[1].length).replace(/\s#+$/, '').trim() };
    } else if (RULE.test(line)) {
      i++;
      block = { kind: 'rule' };
    } else if (QUOTE.test(line)) {
      const body = [];
      for (; i < lines.length && QUOTE.test(lines[i]); i++) body.push(lines[i].replace(QUOTE, ''));
      block = { kind: 'quote', lines: body };
    } else if ((match = ITEM.exec(line))) {
      const ordered = /\d/.test(match[2]), indent = match[1].length, items = [];
      let blank = false, inner = 0;
      for (; i < lines.length; i++) {
        const text = lines[i], next = ITEM.exec(text), depth = text.search(/\S/);
        if (depth < 0) { blank = true; items.at(-1).push(''); continue; }
        if (next && depth < indent + 2 && !RULE.test(text)) {
          if (depth < indent || /\d/.test(next[2]) !== ordered) break;
          inner = next[0].length;
          items.push([text.slice(inner)]);
        } else if (depth > indent + 1) items.at(-1).push(text.slice(Math.min(depth, inner)));
        else if (blank || starts(text)) break;
        else items.at(-1).push(text.trim());
        blank = false;
      }
      block = { kind: 'list', ordered, first: parseInt(match[2], 10), items };
    } else if (line.includes('|') && isRuler(lines[i + 1])) {
      const align = cellsOf(lines[i + 1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'center' : 'right') : undefined));
      const rows = [cellsOf(line)];
      for (i += 2; i < lines.length && lines[i].includes('|'); i++) rows.push(cellsOf(lines[i]));
      block = { kind: 'table', align, rows };
    } else {
      for (i++; i < lines.length && lines[i].trim() && !starts(lines[i]); i++);
      block = { kind: 'text', text: lines.slice(start, i).map((text) => text.trim()).join('\n') };
    }
    block.source = lines.slice(start, i).join('\n');
    blocks.push(block);
  }
  return blocks;
}

const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
const isRuler = (line = '') => line.includes('|') && /^[\s|:-]+$/.test(line) && cellsOf(line).every((cell) => /^:?-+:?$/.test(cell));
const cellsOf = (line) => line.trim().replace(/^\|/, '').replace(/\|$/, '').split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));

function nodeOf(block, depth = 0) {
  const inside = (lines) => (depth < DEEPEST ? blocksOf(lines).map((inner) => nodeOf(inner, depth + 1)) : [lines.join('\n')]);
  switch (block.kind) {
    case 'code': {
      const code = el('code', {}, block.text);
      const copy = el('button', { type: 'button', 'aria-label': 'Copy the code', onclick: (event) => copyText(code.textContent, event.currentTarget) }, 'Copy');
      const pre = el('pre', { tabindex: 0, role: 'region', 'aria-label': block.language ? `Code, ${block.language}` : 'Code' }, code);
      return el('div', { class: 'code' }, el('div', { class: 'head' }, el('span', {}, block.language || 'code'), copy), pre);
    }
    case 'heading': return el(`h${Math.min(6, block.level + 2)}`, { dir: 'auto' }, ...inline(block.text));
    case 'rule': return el('hr');
    case 'quote': return el('blockquote', {}, ...inside(block.lines));
    case 'list': {
      // An item of a single paragraph is shown without the paragraph's space.
      const items = block.items.map((lines) => {
        const nodes = inside(lines);
        return el('li', { dir: 'auto' }, ...nodes.flatMap((node, i) => (i === 0 && node.tagName === 'P' ? [...node.childNodes] : [node])));
      });
      return el(block.ordered ? 'ol' : 'ul', { start: block.ordered && block.first !== 1 && block.first }, ...items);
    }
    case 'table': {
      const row = (cells, tag) => el('tr', {}, ...block.align.map((align, i) => el(tag, { class: align, scope: tag === 'th' && 'col' }, ...inline(cells[i] ?? ''))));
      const [head, ...rows] = block.rows;
      const table = el('table', {}, el('thead', {}, row(head, 'th')), el('tbody', {}, ...rows.map((cells) => row(cells, 'td'))));
      return el('div', { class: 'wide', tabindex: 0, role: 'region', 'aria-label': 'Table' }, table);
    }
    default: return el('p', { dir: 'auto' }, ...inline(block.text));
  }
}

const MARKS = { '**': 'strong', '__': 'strong', '~~': 'del', '*': 'em', _: 'em' };

// The nodes of a line of text: code, emphasis, links, and what is none of these as it stands.
function inline(text, depth = 0) {
  const nodes = [];
  let from = 0, i = 0;
  const put = (end, next, ...more) => { if (end > from) nodes.push(text.slice(from, end)); nodes.push(...more); from = i = next; };
  while (i < text.length) {
    const char = text[i];
    if (char === '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) { put(i, i + 1); i++; continue; }
    if (char === '\n') { put(i, i + 1, el('br')); continue; }
    if (char === '`') {
      const run = /^`+/.exec(text.slice(i, i + 99))[0];
      const end = closing(text, run, i + run.length);
      if (end > 0) put(i, end + run.length, el('code', {}, text.slice(i + run.length, end).replace(/^ (.*\S.*) $/s, '$1')));
      else i += run.length;
      continue;
    }
    const mark = MARKS[text.slice(i, i + 2)] ? text.slice(i, i + 2) : char;
    if (MARKS[mark] && depth < DEEPEST && !(mark[0] === '_' && /\w/.test(text[i - 1] ?? ''))) {
      const end = closing(text, mark, i + mark.length);
      if (end > i + mark.length && /\S/.test(text[i + mark.length]) && /\S/.test(text[end - 1]) && !(mark[0] === '_' && /\w/.test(text[end + mark.length] ?? ''))) {
        put(i, end + mark.length, el(MARKS[mark], {}, ...inline(text.slice(i + mark.length, end), depth + 1)));
      } else i += mark.length;
      continue;
    }
    if (char === '[' && depth < DEEPEST) { // a link, or a picture, which is shown as a link and not loaded
      const start = text[i - 1] === '!' && i > from ? i - 1 : i;
      const match = /^\[([^\]\n]{1,500})\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)?)>?(?:\s+"[^"\n]*")?\s*\)/.exec(text.slice(i, i + 3000));
      const link = match && linkTo(match[2], inline(match[1], DEEPEST));
      if (link) { put(start, i + match[0].length, link); continue; }
    }
    if (char === 'h' && !/\w/.test(text[i - 1] ?? '')) {
      const match = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(i, i + 2000));
      const address = match?.[0].replace(/[.,;:!?*_~)\]]+$/, '');
      const link = match && linkTo(address, [address]);
      if (link) { put(i, i + address.length, link); continue; }
    }
    i++;
  }
  put(text.length, text.length);
  return nodes;
}

// Where `mark` next stands alone, not as part of a longer run of its character.
function closing(text, mark, from) {
  for (let at = text.indexOf(mark, from); at >= 0; at = text.indexOf(mark, at)) {
    let end = at;
    while (text[end] === mark[0]) end++;
    if (end - at === mark.length) return at;
    if (mark[0] !== '`' && end - at === 3 && mark.length < 3) return end - mark.length; // ***both***
    at = end;
  }
  return -1;
}

// A link, to http and https only and by a whole address, or undefined.
function linkTo(address, children) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return undefined;
  const { href } = new URL(address);
  return el('a', { href, title: href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...children);
}

// ---- What is kept -----------------------------------------------------------------------------

// The conversation and the key belong to the tab, the settings to the browser.
const store = {
  get(area, name) { try { return JSON.parse(window[area].getItem(`recua.${name}`)); } catch { return null; } },
  set(area, name, value) { try { window[area].setItem(`recua.${name}`, JSON.stringify(value)); return true; } catch { return false; } },
};
const DEFAULTS = { view: 'markdown', theme: 'system', system: '', stop: '', logprobs: true, model: '' };
const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed'];
const ALTERNATIVES = 5; // beside each token
const RAW_TOKENS = 256; // in raw mode the API's own is 16

let settings = { ...DEFAULTS, ...store.get('localStorage', 'settings') };
let talk = readTalk(store.get('sessionStorage', 'talk')) ?? { mode: 'chat', chat: [], raw: [] };
let key = store.get('sessionStorage', 'key') ?? '';
let models = [];
let running = null; // the answer being written: {turn, control}

const turns = () => talk[talk.mode];
// Keeps what was changed here, and what another tab changed meanwhile.
const saveSettings = (changed) => store.set('localStorage', 'settings', { ...store.get('localStorage', 'settings'), ...changed });
function saveTalk() {
  if (store.set('sessionStorage', 'talk', talk)) return;
  // Too much for the browser: the text matters more than the tokens.
  store.set('sessionStorage', 'talk', JSON.parse(JSON.stringify(talk, (name, value) => (name === 'tokens' ? [] : value))));
}

// A conversation from storage or a file, as far as it makes sense: what this page exports, or
// messages as the API takes them. Null where it makes none.
function readTalk(value) {
  if (Array.isArray(value)) value = { chat: value };
  if (Array.isArray(value?.messages)) value = { chat: value.messages };
  const isToken = (token) => Array.isArray(token) && typeof token[0] === 'string' && (token[1] === null || typeof token[1] === 'number')
    && Array.isArray(token[2]) && token[2].every((other) => Array.isArray(other) && typeof other[0] === 'string' && typeof other[1] === 'number');
  const read = (list) => list.filter((turn) => typeof turn?.content === 'string' && /^(user|assistant)$/.test(turn.role)).map((turn) => ({
    role: turn.role,
    content: turn.content,
    ...(turn.role === 'assistant' && {
      tokens: Array.isArray(turn.tokens) && turn.tokens.every(isToken) ? turn.tokens : [],
      stats: Object.fromEntries(Object.entries(turn.stats ?? {}).filter(([name, item]) => typeof item === (name === 'finish' ? 'string' : 'number'))),
      model: typeof turn.model === 'string' ? turn.model : '',
    }),
  }));
  if (!Array.isArray(value?.chat) && !Array.isArray(value?.raw)) return null;
  const system = value.system ?? value.chat?.find((turn) => turn?.role === 'system')?.content;
  return {
    mode: value.mode === 'raw' ? 'raw' : 'chat',
    chat: read(value.chat ?? []),
    raw: read(value.raw ?? []),
    ...(typeof system === 'string' && { system }),
  };
}

// ---- The server -------------------------------------------------------------------------------

const headers = () => ({ 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) });

// What went wrong, from an error's object as the API has it, or from what came in its place.
function faultOf(error, status, wait) {
  const { message, type, code, param } = typeof error === 'object' && error ? error : { message: error };
  return { message: String(message || 'The server gave no reason.'), detail: [type, code, param].filter((item) => item ?? false).join(', '), param, status, wait };
}

async function ask(path, body, signal) {
  let response;
  try {
    response = await fetch(path, { method: body ? 'POST' : 'GET', headers: headers(), body: body && JSON.stringify(body), signal, cache: 'no-store' });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw faultOf('The server could not be reached.');
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => '');
  let error = text.slice(0, 500) || response.statusText;
  try { const json = JSON.parse(text); error = json.error ?? json.message ?? error; } catch { /* not JSON */ }
  throw faultOf(error, response.status, response.headers.get('retry-after'));
}

// The objects of a stream of events.
async function* eventsOf(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  try {
    for (let rest = ''; ;) {
      const { done, value } = await reader.read();
      const lines = (rest + decoder.decode(value, { stream: !done })).split('\n');
      rest = done ? '' : lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data:')) continue;
        const data = line.slice(5).trim();
        if (data === '[DONE]') return;
        let event;
        try { event = JSON.parse(data); } catch { throw faultOf('The server sent what is not JSON.'); }
        yield event;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function loadModels() {
  try {
    models = (await (await ask('v1/models')).json()).data.map((model) => String(model.id));
  } catch (fault) {
    models = [];
    if (fault.status === 401 || fault.status === 403) say('This server wants an API key.', 'Enter the key', () => openSettings('key'));
    else say(fault.message ?? 'The server’s list of models could not be read.', 'Try again', loadModels);
  }
  if (!models.includes(settings.model)) settings.model = models[0] ?? '';
  $('model').replaceChildren(...models.map((id) => el('option', { value: id, selected: id === settings.model }, id)));
  $('model-pick').hidden = models.length < 2;
  $('model-name').hidden = models.length > 1;
  $('model-name').textContent = $('model-name').title = settings.model;
  drawEmpty();
}

function bodyFor(raw, list, text) {
  const body = { model: settings.model, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (settings[name] !== undefined && settings[name] !== '') body[name] = Number(settings[name]);
  const stop = settings.stop.split('\n').filter(Boolean).map((line) => line.replace(/\\([nt\\])/g, (_, char) => ({ n: '\n', t: '\t' })[char] ?? char));
  if (stop.length) body.stop = stop;
  if (raw) body.max_tokens ??= RAW_TOKENS;
  if (raw) return { ...body, prompt: text, ...(settings.logprobs && { logprobs: ALTERNATIVES }) };
  const messages = settings.system.trim() ? [{ role: 'system', content: settings.system }] : [];
  for (const { role, content } of list) {
    if (!content) continue;
    // Templates want the roles to take turns; they do not where an answer failed.
    if (messages.at(-1)?.role === role) messages.at(-1).content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  return { ...body, messages, ...(settings.logprobs && { logprobs: true, top_logprobs: ALTERNATIVES }) };
}

// Takes a choice's tokens into [text, log-probability or null, [[text, log-probability], …]]. A
// character that several tokens make up is shown with the last of them.
function tokensOf(logprobs, decoder) {
  const decode = (bytes) => decoder.decode(new Uint8Array(bytes), { stream: true });
  const named = (name) => { // tokens that are no whole characters are named bytes:\xNN
    const bytes = /^bytes:(?:\\x[0-9a-f]{2})+$/.test(name) && name.slice(8).split('\\x');
    return bytes ? decode(bytes.map((byte) => parseInt(byte, 16))) : String(name);
  };
  if (Array.isArray(logprobs?.content)) {
    return logprobs.content.map(({ token, logprob, bytes, top_logprobs }) => {
      const text = bytes?.length ? decode(bytes) : String(token);
      return [text, logprob ?? null, (top_logprobs ?? []).map((other) => [String(other.token), other.logprob])];
    });
  }
  const { tokens = [], token_logprobs = [], top_logprobs = [] } = logprobs ?? {};
  return tokens.map((token, i) => [named(token), token_logprobs[i] ?? null, Object.entries(top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1])]);
}

// Writes an answer into `turn`, the last of `list`; in raw mode, after what it already says.
async function answer(turn, list) {
  const raw = list === talk.raw, control = new AbortController(), begun = performance.now();
  const before = list.slice(0, -1), view = viewOf(turn), speak = speaker(turn.content.length);
  const body = bodyFor(raw, before, (before.at(-1)?.content ?? '') + turn.content);
  const decoder = new TextDecoder();
  let first = 0, last = 0, count = 0, finish, usage;
  running = { turn, control };
  Object.assign(turn, { fault: undefined, stats: {}, model: settings.model });
  busy(true);
  view.all();
  const measure = () => {
    const now = performance.now(), made = usage?.completion_tokens ?? count;
    turn.stats = {
      waited: (first || now) - begun, made, finish: finish ?? (first ? 'running' : 'waiting'),
      ...(last > first && made > 1 && { speed: (made - 1) / ((last - first) / 1000) }),
      ...(usage && { prompt: usage.prompt_tokens, cached: usage.prompt_tokens_details?.cached_tokens ?? 0 }),
    };
    view.stats();
  };
  const ticking = setInterval(measure, 250);
  try {
    const path = raw ? 'v1/completions' : 'v1/chat/completions';
    const response = await ask(path, body, control.signal).catch((fault) => {
      if (fault.status !== 400 || !body.logprobs || !/logprobs/.test(fault.param ?? fault.message)) throw fault;
      delete body.logprobs; // a server or model without them still answers
      delete body.top_logprobs;
      return ask(path, body, control.signal);
    });
    for await (const event of eventsOf(response)) {
      if (event.error) throw faultOf(event.error);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const text = choice.delta?.content ?? choice.text ?? '', tokens = tokensOf(choice.logprobs, decoder);
      if (text || tokens.length) {
        last = performance.now();
        first ||= last;
        count += tokens.length || 1;
      }
      turn.content += text;
      turn.tokens.push(...tokens);
      if (text && !choice.logprobs && !turn.tokens.some((token) => token[1] !== null)) turn.tokens.push([text, null, []]);
      finish = choice.finish_reason ?? finish;
      view.soon();
      speak(turn.content);
    }
    if (!finish) throw faultOf('The connection ended before the answer did.');
  } catch (fault) {
    finish = control.signal.aborted ? 'stopped' : 'failed';
    if (finish === 'failed') turn.fault = fault instanceof Error ? faultOf('The connection was lost.') : fault;
  }
  control.abort(); // whatever is left of the request
  clearInterval(ticking);
  running = null;
  measure();
  view.all();
  busy(false);
  speak(turn.content, { stop: 'Answer complete.', length: 'Answer cut at the limit of tokens.', stopped: 'Stopped.' }[finish] ?? '');
  saveTalk();
}

// ---- What is done -----------------------------------------------------------------------------

function busy(is) {
  document.body.classList.toggle('busy', is);
  $('send').textContent = is ? 'Stop' : 'Send';
  for (const button of document.querySelectorAll('[data-idle]')) button.setAttribute('aria-disabled', is);
  for (const item of $('log').children) item.setAttribute('aria-busy', is && viewOf(running.turn).item === item);
}

// Whether the settings make sense; if not, they are shown with what is wrong.
function settled() {
  const wrong = [...$('form').elements].find((input) => input.willValidate && !input.checkValidity());
  if (wrong) openSettings(wrong.name);
  return !wrong;
}

function send(text) {
  if (running || !text.trim() || !settled()) return false;
  turns().push({ role: 'user', content: text });
  begin();
  return true;
}

function begin() {
  const turn = { role: 'assistant', content: '', tokens: [], stats: {}, model: settings.model };
  turns().push(turn);
  stick = true;
  draw();
  saveTalk();
  answer(turn, turns());
}

// Drops `turn` and what follows, and answers what stood before it, or `text` in its place.
function again(turn, text) {
  if (running || !settled()) return;
  const at = turns().indexOf(turn);
  if (turns().length > at + 1 || turn.role === 'user') undoable(text === undefined ? 'Answered anew.' : 'Continued from the edited message.');
  turns().splice(at);
  $('prompt').focus({ preventScroll: true });
  if (text !== undefined) turns().push({ role: 'user', content: text });
  begin();
}

function stop() {
  running?.control.abort();
}

// Says what was done, and offers to undo it.
function undoable(what) {
  const was = structuredClone({ ...talk, system: settings.system });
  say(what, 'Undo', () => {
    stop();
    takeTalk(was);
    say('');
  });
}

function takeTalk({ system, ...rest }) {
  talk = rest;
  if (system !== undefined) saveSettings({ system: settings.system = system });
  fillForm();
  draw();
  saveTalk();
}

function say(text, action, act) {
  $('notice').replaceChildren(...(text ? [el('span', {}, text)] : []), ...(action ? [el('button', { type: 'button', onclick: act }, action)] : []));
}

async function copyText(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no such thing over plain http
    const area = el('textarea', { class: 'hide', readonly: true });
    area.value = text;
    button.after(area);
    area.select();
    done = document.execCommand('copy');
    area.remove();
    button.focus();
  }
  const label = button.textContent;
  if (label !== 'Copy') return;
  button.textContent = done ? 'Copied' : 'Not copied';
  setTimeout(() => { button.textContent = label; }, 1500);
}

// Reads an answer to a screen reader by whole sentences, and not more often than every 4 seconds.
function speaker(said) {
  let when = performance.now();
  return (text, ending) => {
    const now = performance.now();
    if (ending === undefined && now - when < 4000) return;
    const end = ending === undefined ? Math.max(...['. ', '! ', '? ', '\n'].map((mark) => text.lastIndexOf(mark))) + 1 : text.length;
    const parts = [text.slice(said, end), ending].filter((part) => part?.trim());
    if (!parts.length) return;
    [said, when] = [Math.max(said, end), now];
    $('live').append(...parts.map((part) => el('p', {}, part)));
    while ($('live').childElementCount > 20) $('live').firstChild.remove();
  };
}

// ---- What is shown ----------------------------------------------------------------------------

const views = new WeakMap();
const tokenOf = new WeakMap(); // a token's element to the token
let stick = true; // whether the page follows the end of the answer

function viewOf(turn) {
  if (!views.has(turn)) views.set(turn, turn.role === 'user' ? userView(turn) : answerView(turn));
  return views.get(turn);
}

// A button of a turn; `idle` ones do nothing while an answer is written.
const act = (label, onclick, idle = true) => el('button', { type: 'button', 'data-idle': idle, onclick: (event) => { if (!(idle && running)) onclick(event); } }, label);

function userView(turn) {
  const body = el('div', { class: 'body plain', dir: 'auto' }, turn.content);
  const acts = el('div', { class: 'acts' }, act('Copy', (event) => copyText(turn.content, event.currentTarget), false), act('Edit', () => edit()));
  const foot = el('div', { class: 'foot' }, acts);
  const item = el('li', { class: 'user' }, el('h2', { class: 'who' }, talk.mode === 'raw' ? 'Text' : 'You'), foot, body);
  function edit() {
    const area = el('textarea', { 'aria-label': 'Edit the message', rows: 1 });
    const close = () => { form.replaceWith(body); foot.hidden = false; foot.querySelector('[data-idle]').focus(); };
    const form = el('form', { class: 'edit', onsubmit: (event) => { event.preventDefault(); if (area.value.trim()) again(turn, area.value); } }, area,
      el('div', { class: 'row' }, el('button', { type: 'submit', 'data-idle': true }, 'Send'), el('button', { type: 'button', onclick: close }, 'Cancel')));
    area.value = turn.content;
    area.addEventListener('keydown', (event) => {
      if (sends(event)) { event.preventDefault(); form.requestSubmit(); }
      if (event.key === 'Escape') { event.stopPropagation(); close(); }
    });
    area.addEventListener('input', () => fit(area));
    body.replaceWith(form);
    foot.hidden = true;
    fit(area);
    area.focus();
  }
  return { item, edit, all() {} };
}

function answerView(turn) {
  const raw = talk.mode === 'raw';
  const body = el('div', { class: 'body' }), stats = el('span', { class: 'stats' }), fault = el('div');
  const acts = el('div', { class: 'acts' }, act('Copy', (event) => copyText(turn.content, event.currentTarget), false), act('Regenerate', () => again(turn)),
    ...(raw ? [act('Continue', () => { if (turns().at(-1) === turn && settled()) answer(turn, turns()); })] : []));
  const name = el('h2', { class: 'who' });
  const item = el('li', { class: 'answer' }, name, body, fault, el('div', { class: 'foot' }, acts, stats));
  let shown = '', blocks = [], made = 0, waiting = false, told;

  function paint() {
    waiting = false;
    const how = raw && settings.view === 'markdown' ? 'plain' : settings.view;
    if (shown !== how || made > turn.tokens.length) { // from the start
      [shown, blocks, made] = [how, [], 0];
      body.className = `body ${how}`;
      body.replaceChildren();
    }
    if (how === 'plain') {
      if (!body.firstChild) body.append(el('span', { dir: 'auto' }, ''));
      const [line] = body.children;
      if (line.textContent !== turn.content) line.textContent = turn.content;
    } else if (how === 'tokens') paintTokens();
    else paintMarkdown();
    if (stick) follow();
  }

  function paintMarkdown() {
    const next = blocksOf(turn.content.split('\n'));
    next.forEach((block, i) => {
      const old = blocks[i], node = body.children[i];
      if (old?.source === block.source) return;
      if (old?.kind === 'code' && block.kind === 'code' && old.language === block.language) node.querySelector('code').textContent = block.text;
      else if (node) node.replaceWith(nodeOf(block));
      else body.append(nodeOf(block));
    });
    while (body.children.length > next.length) body.lastChild.remove();
    blocks = next;
  }

  // The tokens are one stop of the Tab key; the arrow keys go from one to the next.
  function paintTokens() {
    if (!body.firstChild) body.append(el('div', { role: 'group', 'aria-label': 'Tokens: the arrow keys go from one to the next', onkeydown: walk }));
    const [box] = body.children, bits = [];
    for (; made < turn.tokens.length; made++) {
      const token = turn.tokens[made], [text, logprob] = token;
      const span = el('span', { class: `t${logprob === null ? '' : ` s${stepOf(logprob)}`}`, tabindex: made ? -1 : 0, role: 'button', 'aria-label': !text.trim() && (/\n/.test(text) ? 'line end' : text ? 'space' : 'part of a character') });
      text.split(/(?=\n)/).forEach((part) => span.append(...(part[0] === '\n' ? [el('i', { 'aria-hidden': 'true' }, '↵')] : []), part));
      if (!text) span.append(el('i', { 'aria-hidden': 'true' }, '·')); // a part of a character
      tokenOf.set(span, token);
      bits.push(span);
    }
    box.append(...bits);
  }

  function showStats() {
    const { waited, made: count, speed, prompt, cached, finish } = turn.stats;
    const scored = settings.view === 'tokens' ? turn.tokens.filter((token) => token[1] !== null) : [];
    const number = (value) => Math.round(value).toLocaleString('en');
    stats.textContent = [
      finish === 'waiting' && `waiting, ${(waited / 1000).toFixed(1)} s`,
      count > 0 && `${number(count)} token${count === 1 ? '' : 's'}`,
      speed && `${speed < 100 ? speed.toFixed(1) : number(speed)} tokens/s`,
      count > 0 && waited && `first after ${(waited / 1000).toFixed(2)} s`,
      prompt && `prompt ${number(prompt)}${cached ? `, ${number(cached)} cached` : ''}`,
      scored.length && `${(scored.reduce((sum, token) => sum - token[1], 0) / scored.length / Math.LN2).toFixed(2)} bits a token`,
      settings.view === 'tokens' && finish && finish !== 'waiting' && turn.content && !scored.length && 'no probabilities were sent',
      { stopped: 'stopped', length: 'cut at the limit of tokens', stop: !turn.content && 'an empty answer', failed: !turn.fault && 'interrupted' }[finish]
        ?? (/^(running|waiting)$/.test(finish) ? running?.turn !== turn && 'interrupted' : finish),
    ].filter(Boolean).join(' · ');
  }

  function showFault() {
    if (told === turn.fault) return; // or it would be read out again
    told = turn.fault;
    fault.replaceChildren();
    if (!told) return;
    const { message, detail, status, wait } = told;
    const hints = [];
    if (status === 429 || status === 503) hints.push(/^\d+$/.test(wait ?? '') ? `The server asks to wait ${wait} s.` : 'The server is busy: try again in a moment.');
    const buttons = [act('Try again', () => again(turn))];
    if (status === 401 || status === 403) buttons.unshift(act('Enter the API key', () => openSettings('key')));
    if (!raw && /template/i.test(message)) {
      hints.push('Raw mode needs no chat template.');
      buttons.push(act('Use raw mode', () => { const text = turns()[turns().indexOf(turn) - 1]?.content; setMode('raw'); if (text) send(text); }));
    }
    fault.append(el('div', { class: 'fault', role: 'alert' },
      el('p', {}, el('strong', {}, status ? `Error ${status}: ` : 'Error: '), message, ...(detail ? [el('small', {}, ` (${detail})`)] : []), ...hints.map((hint) => `\n${hint}`)),
      el('div', { class: 'row' }, ...buttons)));
  }

  return {
    item,
    stats: showStats,
    soon() { if (!waiting) { waiting = true; requestAnimationFrame(paint); } },
    all() { name.textContent = raw ? 'Continuation' : turn.model || 'Answer'; showStats(); showFault(); paint(); },
  };
}

// Everything of the current mode.
function draw() {
  hideToken();
  const raw = talk.mode === 'raw', list = turns();
  $('log').replaceChildren(...list.map((turn) => { const view = viewOf(turn); view.all(); return view.item; }));
  busy(running !== null);
  for (const input of document.querySelectorAll('[name="mode"]')) input.checked = input.value === talk.mode;
  for (const input of document.querySelectorAll('[name="view"]')) input.checked = input.value === settings.view;
  $('legend').hidden = settings.view !== 'tokens';
  $('prompt-label').textContent = $('prompt').placeholder = raw ? 'Text to continue' : 'Message';
  const opening = list[0]?.content.trim().split('\n')[0].slice(0, 40);
  document.title = opening ? `${opening} – recua` : 'recua';
  if (document.documentElement.dataset.theme !== settings.theme) document.documentElement.dataset.theme = settings.theme;
  drawEmpty();
}

function drawEmpty() {
  const raw = talk.mode === 'raw', name = settings.model || 'the model';
  $('empty').hidden = turns().length > 0;
  $('empty').children[0].textContent = raw ? `Let ${name} continue a text` : `Talk with ${name}`;
  $('empty').children[1].textContent = raw ? 'What you type goes to the model as it stands, with no chat template, and the model writes on.'
    : 'The conversation stays in this tab; it goes to this server and nowhere else.';
}

function setMode(mode) {
  talk.mode = mode;
  draw();
  saveTalk();
}

function follow() {
  window.scrollTo(0, document.documentElement.scrollHeight);
}

function fit(area) {
  area.style.height = 'auto';
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

// ---- A token's alternatives -------------------------------------------------------------------

// Steps of surprise, in bits: over a half, a fifth, a twentieth, a hundredth, and less.
const stepOf = (logprob) => [1, Math.log2(5), Math.log2(20), Math.log2(100)].filter((bits) => -logprob / Math.LN2 > bits).length;
const percent = (logprob) => { const share = 100 * Math.exp(logprob); return share < 0.01 ? '<0.01 %' : `${share.toFixed(share < 10 ? 2 : 1)} %`; };
const visible = (text) => text.replaceAll('\n', '↵').replaceAll('\t', '⇥').replaceAll(' ', '␣') || '(part of a character)';
const pop = $('pop');
let popFor = null, popTimer = 0;

function showToken(span) {
  clearTimeout(popTimer);
  if (popFor === span) return;
  hideToken();
  popFor = span;
  const [text, logprob, others] = tokenOf.get(span);
  const named = others.findIndex((other) => other[0] === text);
  const chosen = named >= 0 ? named : others.findIndex((other) => other[1] === logprob), rows = logprob === null || chosen >= 0 ? others : [...others, [text, logprob]];
  const row = ([other, share], i) => {
    const meter = el('div', { class: 'meter' }), on = i === (chosen < 0 ? rows.length - 1 : chosen);
    meter.style.width = `${100 * Math.exp(share)}%`;
    return el('tr', { class: on && 'on' }, el('th', { scope: 'row' }, el('code', {}, visible(other)), on ? ' ✓' : ''), el('td', {}, percent(share)), el('td', { 'aria-hidden': 'true' }, meter));
  };
  pop.replaceChildren(
    el('p', {}, el('code', {}, visible(text)), logprob === null ? ': its probability was not sent' : `: ${percent(logprob)}, ${(-logprob / Math.LN2).toFixed(2)} bits of surprise`),
    ...(rows.length > 0 ? [el('table', {}, el('tbody', {}, ...rows.map(row)))] : []));
  pop.hidden = false;
  span.classList.add('on');
  span.setAttribute('aria-describedby', 'pop');
  placeToken();
}

function placeToken() {
  if (!popFor) return;
  const at = popFor.getClientRects()[0] ?? popFor.getBoundingClientRect(), { offsetWidth: width, offsetHeight: height } = pop;
  const top = $('composer').getBoundingClientRect().top, below = at.bottom + 6;
  pop.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8))}px`;
  pop.style.top = `${below + height < top || at.top - height < 8 ? below : at.top - height - 6}px`;
}

function hideToken() {
  popFor?.classList.remove('on');
  popFor?.removeAttribute('aria-describedby');
  popFor = null;
  pop.hidden = true;
}

function hideSoon() {
  clearTimeout(popTimer);
  popTimer = setTimeout(() => { if (!popFor?.matches(':focus')) hideToken(); }, 150);
}

// The arrow keys among tokens: left and right to the next, up and down to the next surprising one.
function walk(event) {
  const all = [...event.currentTarget.children], at = all.indexOf(event.target);
  const odd = (step) => { let i = at + step; while (all[i] && !/s[34]/.test(all[i].className)) i += step; return i; };
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: odd(1), ArrowUp: odd(-1), Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (!all[to]) return;
  event.target.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

// ---- Settings ---------------------------------------------------------------------------------

function fillForm() {
  for (const input of $('form').elements) {
    if (input.type === 'checkbox') input.checked = settings[input.name];
    else if (input.name) input.value = input.name === 'key' ? key : settings[input.name] ?? '';
  }
  document.documentElement.dataset.theme = settings.theme;
}

function readForm() {
  const changed = {};
  for (const input of $('form').elements) {
    if (!input.name) continue;
    const fine = input.checkValidity(), hint = $(`h-${input.name}`);
    if (hint) hint.dataset.text ??= hint.textContent;
    if (hint) hint.textContent = fine ? hint.dataset.text : input.validationMessage;
    hint?.classList.toggle('bad', !fine);
    input.setAttribute('aria-invalid', !fine);
    const value = input.type === 'checkbox' ? input.checked : input.value;
    if (input.name !== 'key' && fine && value !== (settings[input.name] ?? '')) changed[input.name] = value;
  }
  Object.assign(settings, changed);
  document.documentElement.dataset.theme = settings.theme;
  saveSettings(changed);
}

function openSettings(name) {
  const box = $('settings'), wide = matchMedia('(min-width: 75rem)').matches;
  if (!box.open) wide ? box.show() : box.showModal();
  document.body.classList.toggle('aside', wide);
  $('settings-open').setAttribute('aria-expanded', 'true');
  readForm();
  $('form').elements[name ?? 'system'].focus();
}

$('settings').addEventListener('close', () => {
  document.body.classList.remove('aside');
  $('settings-open').setAttribute('aria-expanded', 'false');
  $('settings-open').focus();
});
$('settings-open').addEventListener('click', () => ($('settings').open ? $('settings').close() : openSettings()));
$('settings').addEventListener('click', (event) => { if (event.target === $('settings')) $('settings').close(); }); // beside it
$('form').addEventListener('submit', (event) => { event.preventDefault(); $('settings').close(); });
$('form').addEventListener('input', readForm);
$('form').addEventListener('reset', (event) => {
  event.preventDefault();
  const { view, model, ...plain } = DEFAULTS;
  const changed = { ...Object.fromEntries(NUMBERS.map((name) => [name, ''])), ...plain };
  Object.assign(settings, changed);
  saveSettings(changed);
  fillForm();
  readForm();
});
$('form').elements.key.addEventListener('change', (event) => {
  key = event.target.value.trim();
  store.set('sessionStorage', 'key', key);
  say('');
  loadModels();
});

$('export').addEventListener('click', () => {
  const plain = (name, value) => (name === 'fault' ? undefined : value);
  const file = new Blob([JSON.stringify({ made_by: 'recua', version: 1, system: settings.system, ...talk }, plain, 1)], { type: 'application/json' });
  const link = el('a', { href: URL.createObjectURL(file), download: `recua-${new Date().toISOString().slice(0, 19).replaceAll(':', '-')}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$('import').addEventListener('click', () => $('file').click());
$('file').addEventListener('change', async () => {
  const [file] = $('file').files;
  if (!file) return;
  let read = null;
  try { read = readTalk(JSON.parse(await file.text())); } catch { /* not JSON */ }
  $('file').value = '';
  if ($('settings').open && !document.body.classList.contains('aside')) $('settings').close();
  if (!read) return say(`${file.name} holds no conversation.`);
  stop();
  undoable(`${file.name} was imported.`);
  takeTalk(read);
});

// ---- Keys and buttons -------------------------------------------------------------------------

// Enter sends, but on a phone, whose keyboard has no Shift+Enter, it starts a new line.
const sends = (event) => event.key === 'Enter' && !event.isComposing && (event.ctrlKey || event.metaKey || (!event.shiftKey && !matchMedia('(pointer: coarse)').matches));

$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  if (running) return stop();
  if (!send($('prompt').value)) return;
  $('prompt').value = '';
  fit($('prompt'));
  say('');
});
$('prompt').addEventListener('keydown', (event) => {
  if (sends(event)) {
    event.preventDefault();
    if (!running) $('composer').requestSubmit();
  } else if (event.key === 'ArrowUp' && !$('prompt').value && !running) { // the last message, to edit
    const last = turns().findLast((turn) => turn.role === 'user');
    if (last) { event.preventDefault(); viewOf(last).edit(); }
  }
});
$('prompt').addEventListener('input', () => fit($('prompt')));
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || $('settings').matches(':modal')) return;
  if (popFor) hideToken();
  else if (running) stop();
  else if ($('settings').open) $('settings').close();
});
$('clear').addEventListener('click', () => {
  $('prompt').focus();
  if (!turns().length) return;
  stop();
  undoable('Cleared.');
  talk[talk.mode] = [];
  draw();
  saveTalk();
});
$('mode').addEventListener('change', (event) => setMode(event.target.value));
$('view').addEventListener('change', (event) => {
  saveSettings({ view: settings.view = event.target.value });
  draw();
});
$('model').addEventListener('change', (event) => {
  saveSettings({ model: settings.model = event.target.value });
  drawEmpty();
});

const tokenAt = (event) => (event.target instanceof Element ? event.target.closest('.tokens .t') : null);
$('log').addEventListener('mouseover', (event) => { const span = tokenAt(event); if (span) showToken(span); });
$('log').addEventListener('mouseout', (event) => { if (tokenAt(event)) hideSoon(); });
$('log').addEventListener('focusin', (event) => { const span = tokenAt(event); if (span) showToken(span); });
$('log').addEventListener('focusout', (event) => { if (tokenAt(event)) hideSoon(); });
document.addEventListener('click', (event) => { const span = tokenAt(event); if (span) showToken(span); else if (!pop.contains(event.target)) hideToken(); });
pop.addEventListener('mouseenter', () => clearTimeout(popTimer));
pop.addEventListener('mouseleave', hideSoon);
addEventListener('scroll', () => {
  stick = innerHeight + scrollY > document.documentElement.scrollHeight - 60;
  placeToken();
}, { passive: true });
addEventListener('resize', placeToken);
addEventListener('pagehide', saveTalk);

fillForm();
draw();
follow();
loadModels();
