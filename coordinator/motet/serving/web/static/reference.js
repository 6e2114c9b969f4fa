"use strict";
// Swagger UI over this server's schema; without `validatorUrl: null` it would ask a server elsewhere.
const reference = document.getElementById("reference");
SwaggerUIBundle({ domNode: reference, url: reference.dataset.schema, deepLinking: true, validatorUrl: null });
