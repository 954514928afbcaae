// Begin.

const app = {
  view: null,

  /** Show the view of the address; the same view only reads what changed. */
  open(before = null) {
    const { route } = router;
    if (before && before.view === route.view && before.id === route.id) {
      this.view.update?.();
      return;
    }
    this.view?.close?.();
    connection.set("connecting");
    if (route.view === "run") this.view = new RunView(route.id);
    else if (route.view === "runs") this.view = new RunsView();
    else {
      this.view = null;
      shell.main.replaceChildren(h("div", { class: "page" }, emptyState("Not found", "There is nothing at this address.", h("div", { class: "row" }, link(address("."), { class: "button", text: "All runs" })))));
    }
    document.body.classList.toggle("full", route.view === "run");
    scrollTo(0, 0);
  },

  async begin() {
    theme.apply();
    shell.build(document.getElementById("app"));
    FAMILY = getComputedStyle(document.body).fontFamily;
    ticker.start();
    document.addEventListener("keydown", onKey);
    router.start((before) => this.open(before));
    const signIn = api.session();
    this.open();
    try {
      await signIn;
      shell.signedIn();
      // Actions are drawn once it is known which are allowed.
      this.view?.allowed?.();
    } catch (error) {
      if (error.status === 401 || error.status === 403) connection.set("refused");
    }
  },
};

app.begin();
