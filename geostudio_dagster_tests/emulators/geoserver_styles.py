"""GeoServer's styles and the layers that they are the default of."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from geostudio_dagster_tests.emulators.geoserver_calls import Answer, Call, RefusedError, route
from geostudio_dagster_tests.emulators.geoserver_state import Style, Workspace

SLD = "{http://www.opengis.net/sld}"


class StyleRoutes:
    """The routes of styles and layers; the emulator has the workspaces."""

    workspaces: dict[str, Workspace]

    def workspace(self, ws: str) -> Workspace:
        raise NotImplementedError

    def style(self, ws: str, style: str) -> Style:
        styles = self.workspace(ws).styles
        if style not in styles:
            raise RefusedError(404, f"No such style {style} in workspace {ws}")
        return styles[style]

    # Styles

    @route("GET", "/rest/workspaces/<ws>/styles")
    def list_styles(self, call: Call, ws: str) -> Answer:
        return 200, {"styles": {"style": [{"name": name} for name in self.workspace(ws).styles]}}

    @route("POST", "/rest/workspaces/<ws>/styles")
    def add_style(self, call: Call, ws: str) -> Answer:
        document = call.document()
        name = document.findtext("name") or ""
        styles = self.workspace(ws).styles
        if name in styles:
            raise RefusedError(500, f"Style named '{name}' already exists in workspace {ws}")
        styles[name] = Style(name, document.findtext("filename") or "")
        return 201, name

    @route("GET", "/rest/workspaces/<ws>/styles/<style>.sld")
    def get_style_body(self, call: Call, ws: str, style: str) -> Answer:
        return 200, self.style(ws, style).body

    @route("GET", "/rest/workspaces/<ws>/styles/<style>")
    def get_style(self, call: Call, ws: str, style: str) -> Answer:
        found = self.style(ws, style)
        document = {"name": found.name, "format": "sld", "filename": found.filename}
        return 200, {"style": {**document, "languageVersion": {"version": "1.0.0"}}}

    @route("PUT", "/rest/workspaces/<ws>/styles/<style>")
    def put_style(self, call: Call, ws: str, style: str) -> Answer:
        found = self.style(ws, style)
        if call.content_type != "application/vnd.ogc.sld+xml":
            raise RefusedError(415, f"Content-Type {call.content_type!r} is not supported")
        try:
            root = ET.fromstring(call.body)
        except ET.ParseError as error:
            raise RefusedError(400, f"Invalid style:{error}") from error
        if root.tag not in {f"{SLD}StyledLayerDescriptor", "StyledLayerDescriptor"}:
            raise RefusedError(400, "Invalid style:not a StyledLayerDescriptor")
        # Without raw, GeoServer writes out what it understood, not what it was sent.
        found.body = call.body if call.query.get("raw") == "true" else ET.tostring(root)
        return 200, ""

    @route("DELETE", "/rest/workspaces/<ws>/styles/<style>")
    def delete_style(self, call: Call, ws: str, style: str) -> Answer:
        workspace = self.workspace(ws)
        if style not in workspace.styles:
            raise RefusedError(404, f"Style {style} not found")
        users = [name for name, used in workspace.layers.items() if used == (ws, style)]
        if users and not call.recurse:
            raise RefusedError(403, "Can't delete style referenced by existing layers.")
        for name in users:
            workspace.layers[name] = (None, "raster")
        del workspace.styles[style]
        return 200, ""

    # Layers

    @route("GET", "/rest/layers")
    def list_layers(self, call: Call) -> Answer:
        names = [f"{ws.name}:{name}" for ws in self.workspaces.values() for name in ws.layers]
        return 200, {"layers": {"layer": [{"name": name} for name in names]}}

    @route("GET", "/rest/workspaces/<ws>/layers/<layer>")
    def get_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        owner, name = workspace.layers[layer]
        style = {"name": f"{owner}:{name}", "workspace": owner} if owner else {"name": name}
        return 200, {"layer": {"name": layer, "type": "RASTER", "defaultStyle": style}}

    @route("PUT", "/rest/workspaces/<ws>/layers/<layer>")
    @route("PUT", "/rest/layers/<ws>:<layer>")
    def put_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        document = call.document()
        name = document.findtext("defaultStyle/name") or ""
        owner = document.findtext("defaultStyle/workspace")
        if owner is None and name in workspace.styles:
            owner = ws
        if owner is not None:
            self.style(owner, name)
        elif name != "raster":
            raise RefusedError(404, f"No such style: {name}")
        workspace.layers[layer] = (owner, name)
        return 200, ""

    @route("DELETE", "/rest/workspaces/<ws>/layers/<layer>")
    def delete_layer(self, call: Call, ws: str, layer: str) -> Answer:
        workspace = self.workspace(ws)
        if layer not in workspace.layers:
            raise RefusedError(404, f"No such layer: {layer}")
        del workspace.layers[layer]
        if call.recurse:
            for store in workspace.stores.values():
                store.coverages.pop(layer, None)
            for vectors in workspace.data_stores.values():
                vectors.feature_types.pop(layer, None)
        return 200, ""
