// Where an EHR, or the test, starts the app: fhirclient takes `iss` and `launch` from the address.
FHIR.oauth2.authorize({
  clientId: "pulse",
  redirectUri: "app.html",
  scope: new URLSearchParams(location.search).get("scope"),
  pkceMode: "required",
});
