// What the browser does for the chat page: conversations, settings and a typed message stay in its own storage, and a
// notice tells whether the server responds.
window.nanochat = (() => {
  const CHAT = "nanochat-lit:chat:", SETTINGS = "nanochat-lit:settings", OPEN = "nanochat-lit:open", DRAFT = "nanochat-lit:draft";
  const MAX_CHATS = 200, MAX_BYTES = 800_000, POLL_MS = 3000;
  let last = null, boot = null, storageProblem = "";

  const read = (key, store = localStorage) => { try { return JSON.parse(store.getItem(key)); } catch { return null; } };
  const write = (key, value, store = localStorage) => {
    try { value === null ? store.removeItem(key) : store.setItem(key, JSON.stringify(value)); return true; } catch { return false; }
  };
  const current = () => read(OPEN, sessionStorage);
  const setCurrent = (id) => write(OPEN, id, sessionStorage);
  const box = () => document.querySelector("#message textarea");

  const chats = () => {  // newest first
    let keys = [];
    try { keys = Object.keys(localStorage).filter((key) => key.startsWith(CHAT)); } catch { /* storage is disabled */ }
    return keys.map((key) => ({ ...read(key), id: key.slice(CHAT.length) })).filter((chat) => Array.isArray(chat.chats))
      .sort((one, other) => (Number(other.when) || 0) - (Number(one.when) || 0));
  };
  const listed = () => ({
    __type__: "update",
    choices: chats().map((chat) => [String(chat.title || "Untitled"), chat.id]),
    value: current(),
  });

  const textOf = (content) => typeof content === "string" ? content : content.map((part) =>
    part.type === "python" ? ` \`${part.text}\`` : part.type === "python_output" ? ` = ${part.text}\n\n` : part.text).join("").trim();
  const titleOf = (chat) => textOf(chat.chats[0].messages.find((message) => message.role === "user").content).replace(/\s+/g, " ").slice(0, 60);

  const keep = (text) => {
    const saved = text ? JSON.parse(text) : null;
    last = saved && saved.chats.length ? saved : null;
    setCurrent(last && last.id);
    if (saved && !last) write(CHAT + saved.id, null);  // its last question was taken back
    if (!last) return listed();
    const old = read(CHAT + last.id);
    const isNews = JSON.stringify(old?.chats) !== JSON.stringify(last.chats);  // to open it does not move it up
    const item = { title: old?.title || titleOf(last), when: isNews ? Date.now() : old.when, chats: last.chats };
    chats().slice(MAX_CHATS).forEach((chat) => write(CHAT + chat.id, null));
    const isKept = write(CHAT + last.id, item);
    storageProblem = isKept ? "" : "This browser does not keep the conversation: its storage is full or disabled. Export it.";
    if (!isKept) show(storageProblem);
    return listed();
  };
  const stored = (id) => {  // as the server reads it; empty for a new conversation
    const chat = id && read(CHAT + id);
    if (!chat) return "";
    const text = JSON.stringify({ id, chats: chat.chats });
    if (new TextEncoder().encode(JSON.stringify(text)).length > MAX_BYTES) {
      alert("This conversation is too long to continue; export it.");
      return "";
    }
    return text;
  };

  const start = () => {
    const draft = read(DRAFT, sessionStorage) || "";
    write(DRAFT, null, sessionStorage);
    return [JSON.stringify(read(SETTINGS)), stored(current()), draft];
  };
  const opened = () => {
    const chat = current() && read(CHAT + current());
    if (!chat) alert("Begin or open a conversation first.");
    return chat;
  };
  const rename = () => {
    const id = current(), chat = opened();
    const title = chat && prompt("Title of this conversation", chat.title);
    if (title && title.trim()) write(CHAT + id, { ...chat, title: title.trim().slice(0, 100) });
    return listed();
  };
  const remove = () => {  // whether the open conversation was deleted
    const id = current(), chat = opened();
    if (!chat || !confirm(`Delete "${chat.title}"? This cannot be undone.`)) return false;
    write(CHAT + id, null);
    setCurrent(null);
    return true;
  };

  const download = (kind) => {
    const chat = last || opened();  // the last one, if the browser could not store it
    if (!chat) return;
    const title = read(CHAT + current())?.title || titleOf(chat);
    chat.chats.forEach((side, index) => {
      const names = { system: "System", user: "You", assistant: "Model" };
      const lines = side.messages.map((message) => `**${names[message.role]}:** ${textOf(message.content)}\n`);
      const text = kind === "json" ? JSON.stringify(side, null, 2) + "\n" : [`# ${title}\n`, ...lines].join("\n");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/markdown" }));
      const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat";
      link.download = `${name}${chat.chats.length > 1 ? `-${index + 1}` : ""}.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
  };

  const show = (text) => {
    let notice = document.getElementById("notice");
    if (!notice) {
      notice = Object.assign(document.createElement("div"), { id: "notice", role: "status" });
      document.body.append(notice);
    }
    notice.textContent = text || "";
    notice.hidden = !text;
  };
  const poll = async () => {
    try {
      const health = await (await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(5000) })).json();
      if (boot && health.boot !== boot) {  // a new process, which does not know this tab: load the page and the conversation
        write(DRAFT, box()?.value || "", sessionStorage);
        location.reload();
        return;
      }
      boot = health.boot;
      show(health.problem || storageProblem);
    } catch {
      show("The server does not respond. The conversation is kept in this browser, and continues when the server is back.");
    }
  };
  setInterval(() => document.hidden || poll(), POLL_MS);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
  poll();

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#message [data-testid=stop-button]")?.click();
  });

  return {
    start, stored, keep, listed, rename, remove, download, poll,
    fresh: () => { setCurrent(null); last = null; box()?.focus(); },
    keepSettings: (...values) => { write(SETTINGS, values); },
    // the list is open where it does not cover the conversation
    layout: () => [{ __type__: "update", open: innerWidth >= 1100 }, listed()],
  };
})();
