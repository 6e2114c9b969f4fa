"""Two pages for people: a playground for whoever uses the model, and a federation's state for whoever coordinates it.

Guarantees: everything that a model or an owner wrote is shown as text, whatever it says; the pages fetch nothing from
elsewhere and run no script but those in `static`: ours, which shows answers while they are made, and on the
federation's page the one vendored here (`htmx.min.js`, htmx 4.0.1, 0BSD, its licence beside it); they can be read and
used without any script, with the keyboard, and at a width of 360 pixels. Beside them /docs shows the reference of the
API, which needs scripts, and gets them from this server too.

    app = build_app(service)
    mount(app)                                # the playground, at /, and /docs
    mount(app, home=Path("home"))             # and the federation's page, at /federation
"""

from motet.serving.web.mounting import mount

__all__ = ["mount"]
